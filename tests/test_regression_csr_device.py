# SPDX-License-Identifier: BSD-3-Clause
"""Regressions with a sparse A on every device, against the same A written out in float64 on the CPU."""

import oracle_regression as oracle
import pytest
import torch
from oracle_regression import FORMS, KINDS
from test_regression_csr import sparse_problem
from torch.func import grad, hessian, vmap

from torch_rescaled import Regression, regression_evaluate, regression_hvp, solve

OPS = torch.ops.torch_rescaled
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]
TYPES = [(torch.float64, torch.int32), (torch.float32, torch.int64), (torch.bfloat16, torch.int32), (torch.float16, torch.int64)]


def kernels_for_cuda(device):
    """Whether kernels for CUDA serve: on a GPU, or compiled for the host in a library for tests (test_cuda_twin.py)."""
    there = device == "cuda" or any("twin" in library for library in torch.ops.loaded_libraries)
    return there and OPS._cuda_path(0, "regression_csr") != "plain"


def moved(device, *tensors):
    return [t if t is None else t.to(device) for t in tensors]


def written_out(crow, col, values, d):
    """The values as they are stored, in float64; those of one place are added."""
    row = torch.repeat_interleave(torch.arange(len(crow) - 1), crow.diff())
    return torch.zeros(len(crow) - 1, d, dtype=torch.float64).index_put_((row, col.long()), values.double(), accumulate=True)


# Rows nearly dense; of some values, whose Hessian is made of pairs; with more columns than a table holds.
SIZES = [(70, 9, 0.6), (400, 150, 0.03), (500, 3000, 0.004)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "index"), TYPES, ids=str)
def test_products_and_curvature(dtype, index, size, device):
    n, d, density = size
    for number, kind in enumerate(KINDS):
        form = FORMS[(number + n) % 3]
        _, components, point = sparse_problem(n, d, density, dtype=dtype, index=index)
        A, exact = written_out(*components, d), [t.double() for t in point]
        b, x, w, p = moved(device, *point)
        components = moved(device, *components)
        eps, settings = torch.finfo(b.dtype).eps, {"kind": kind, "form": form}
        curvature = ("full", "gauss_newton", "clipped")[number] if d < 2000 else "none"
        weights, of_exact = {"row_weight": w, "penalty_weight": p}, {"row_weight": exact[2], "penalty_weight": exact[3]}
        found = OPS.regression_evaluate_csr(*components, d, b, x, **weights, **settings, curvature=curvature)
        expected = regression_evaluate(A, *exact[:2], **of_exact, **settings, curvature=curvature)
        scale = (found[3].cpu() - expected[3]).exp()
        torch.testing.assert_close(found[0].cpu().double(), expected[0], rtol=500 * eps, atol=500 * eps)
        for ours, theirs in zip(found[1:3], expected[1:3], strict=True):
            size = theirs.abs().max().item() if theirs.numel() else 0
            torch.testing.assert_close(ours.cpu().double() * scale, theirs, rtol=0, atol=2000 * eps * size)
        ours = OPS.regression_hvp_csr(*components, d, b, x, x, **weights, **settings, curvature="full").cpu().double()
        theirs = regression_hvp(A, *exact[:2], exact[1], **of_exact, **settings, curvature="full")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2000 * eps * theirs.abs().max().item())


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_sums_of_rows(count, squared, device):
    for dtype, index in TYPES[:2]:
        _, (crow, col, values), _ = sparse_problem(700, 30, 0.1, dtype=dtype, index=index)
        A = written_out(crow, col, values.square() if squared else values, 30)
        weights = torch.randn(2, count, 700, dtype=dtype)
        found = OPS._regression_transposed(
            *moved(device, values[None], weights), squared, *moved(device, crow[None], col[None]), 30
        )
        torch.testing.assert_close(found.cpu().double(), weights.double() @ A, rtol=0, atol=100 * torch.finfo(dtype).eps)


def test_numbers_of_every_size(device):
    """A column's sum is right beside others that are larger by any power: the fixed point is a column's own."""
    n = 64
    for dtype, exponents in ((torch.float32, torch.arange(-30, 30)), (torch.float64, torch.arange(-300, 300, 10))):
        values = torch.randn(n, len(exponents), dtype=torch.float64) * 10.0 ** exponents.double()
        values, weights = values.to(dtype), torch.randn(n, dtype=dtype)
        crow, col = torch.arange(n + 1) * len(exponents), torch.arange(len(exponents)).repeat(n)
        found = OPS._regression_transposed(
            *moved(device, values.flatten(), weights[None]), False, *moved(device, crow, col), len(exponents)
        )
        exact, sizes = weights.double() @ values.double(), weights.double().abs() @ values.double().abs()
        assert ((found[0].cpu().double() - exact).abs() <= 8 * torch.finfo(dtype).eps * sizes).all()


def test_numbers_that_are_not_finite(device):
    values = torch.tensor([1.0, torch.inf, 1.0, torch.inf, -torch.inf, torch.inf, -torch.inf, torch.nan, 2.0, 0.0])
    col = torch.tensor([0, 1, 2, 2, 3, 4, 4, 5, 0, 6])
    crow, weights = torch.tensor([0, 10]), torch.ones(1, 1)
    found = OPS._regression_transposed(*moved(device, values, weights), False, *moved(device, crow, col), 8)
    expected = torch.tensor([[3.0, torch.inf, torch.inf, -torch.inf, torch.nan, torch.nan, 0.0, 0.0]])
    torch.testing.assert_close(found.cpu(), expected, equal_nan=True)


def test_sums_do_not_depend_on_the_order(device):
    if not kernels_for_cuda(device):
        pytest.skip("the CPU's sums do: of rows in their order")
    for dtype in (torch.float32, torch.float64):
        n, d = 3000, 200
        values, weights = torch.randn(n, 20, dtype=dtype), torch.randn(3, n, dtype=dtype).exp()
        col = torch.randint(0, d, (n, 20)).where(torch.arange(20) > 0, 0)  # a column that every row has
        crow, order = torch.arange(n + 1) * 20, torch.randperm(n)
        found = [
            OPS._regression_transposed(*moved(device, a.flatten(), w), False, *moved(device, crow, c.flatten()), d)
            for a, c, w in ((values, col, weights), (values[order], col[order], weights[:, order]), (values, col, weights))
        ]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("form", FORMS)
def test_derivatives(form, device):
    _, (crow, col, values), (b, x, w, _) = sparse_problem(30, 6, 0.4)
    A = written_out(crow, col, values, 6)
    crow, col = moved(device, crow, col)

    def ours(values, b, x):
        return OPS.regression_loss_csr(crow, col, values, 6, b, x, row_weight=w.to(device), kind="cosh", form=form)

    def dense(A, b, x):
        return oracle.loss(A, b, x, w, None, kind="cosh", form=form)

    there = moved(device, values, b, x)
    for transform in (
        lambda f, a, b, x: grad(f, argnums=(1, 2))(a, b, x),
        lambda f, a, b, x: hessian(f, argnums=(1, 2))(a, b, x),
        lambda f, a, b, x: vmap(grad(f, argnums=2), in_dims=(None, None, 0))(a, b, torch.stack([x, -x])),
    ):
        found = torch.utils._pytree.tree_map(lambda t: t.cpu(), transform(ours, *there))
        torch.testing.assert_close(found, transform(dense, A, b, x), rtol=1e-9, atol=1e-11)
    row = torch.repeat_interleave(torch.arange(30), crow.diff().cpu())
    expected = grad(dense)(A, b, x)[row, col.cpu()]
    torch.testing.assert_close(grad(ours)(*there).cpu(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bad", ["beyond", "negative", "late", "early", "back", "far"])
def test_wrong_indices_are_not_followed(bad, index, device):
    """Nothing waits for the device, so that there it is no error (test_regression_csr.py) but a NaN."""
    if not kernels_for_cuda(device):
        pytest.skip("an error on the CPU")
    _, (crow, col, values), (b, x, *_) = sparse_problem(40, 16, 0.1, index=index)
    changed = col if bad in ("beyond", "negative") else crow
    at, number = {"beyond": (3, 16), "negative": (0, -1), "late": (0, 1), "early": (40, 1), "back": (5, -3), "far": (5, 2**30)}[bad]
    changed[at] = number
    crow, col, values, b, x = moved(device, crow, col, values, b, x)
    rows, numbers = torch.rand(7, 40, dtype=torch.float64, device=device), torch.rand(12, dtype=torch.float64, device=device)
    assert OPS._regression_matvec(values, x, crow, col).isnan().any()
    assert OPS._regression_transposed(values, rows, False, crow, col, 16).isnan().all()
    for found in OPS._regression_curvature(values, rows, numbers, "full", crow, col, 16):
        assert found.isnan().all()
    assert OPS.regression_loss_csr(crow, col, values, 16, b, x).isnan()
    matrix = torch.sparse_csr_tensor(crow, col, values, (40, 16), check_invariants=False)
    with pytest.raises(ValueError, match=r"torch_rescaled::Regression: expected c"):
        Regression(matrix, b)


@pytest.mark.parametrize(("n", "d"), [(4, 3), (4, 0), (0, 3), (40, 300)])
def test_nothing_is_stored(n, d, device):
    crow, col, values = moved(device, torch.zeros(n + 1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    b, x = moved(device, torch.rand(n), torch.ones(d))
    settings = {"curvature": "full", "form": "plain"}
    found = OPS.regression_evaluate_csr(crow, col, values, d, b, x, **settings)
    expected = regression_evaluate(torch.zeros(n, d), b.cpu(), x.cpu(), **settings)
    torch.testing.assert_close([t.cpu() for t in found], list(expected))
    assert OPS._regression_transposed(values, torch.ones(2, n, device=device), False, crow, col, d).eq(0).all()


@pytest.mark.parametrize("method", ["newton", "lbfgs", "cg"])
def test_solves(method, device):
    A, components, (_, x, *_) = sparse_problem(600, 40, 0.1, weights=False)
    u = (A @ x).exp()
    b = u / u.sum() * (1 + 0.01 * torch.randn(600, dtype=torch.float64))
    crow, col, values, of_device, x0 = moved(device, *components, b, 0.9 * x)
    matrix = torch.sparse_csr_tensor(crow, col, values, (600, 40), check_invariants=False)
    ours = solve(Regression(matrix, of_device, form="normalized"), x0=x0, method=method)
    dense = solve(Regression(A, b, form="normalized"), x0=0.9 * x, method=method)
    assert ours.status.converged
    torch.testing.assert_close(ours.x.cpu(), dense.x, rtol=1e-6, atol=1e-7)
