# SPDX-License-Identifier: BSD-3-Clause
"""Regressions with a sparse A: values, derivatives and solves of the same A written out, indices in any state, refusals."""

import oracle_regression as oracle
import pytest
import scipy.sparse
import torch
from oracle_regression import FORMS, KINDS
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vmap
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import torch_rescaled
from torch_rescaled import Regression, regression_evaluate, regression_hvp, regression_loss, solve

OPS = torch.ops.torch_rescaled
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")


def sparse_problem(n, d, density, *, index=torch.int64, dtype=torch.float64, weights=True, seed=0):
    """A written out, its components, b, x and weights; rows are unsorted, and a tenth of the values stand there in two parts."""
    generator = torch.Generator().manual_seed(seed)
    A, b, x, w, p = oracle.problem(n, d, weights=weights)
    A = A * (torch.rand(n, d, generator=generator) < density)
    row, col = A.nonzero(as_tuple=True)
    value = A[row, col]
    split = torch.rand(len(value), generator=generator) < 0.1
    row, col = torch.cat([row, row[split]]), torch.cat([col, col[split]])
    value = torch.cat([torch.where(split, 0.25 * value, value), 0.75 * value[split]])
    order = torch.randperm(len(value), generator=generator)
    order = order[row[order].argsort(stable=True)]
    crow = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(row, minlength=n).cumsum(0)])
    components = crow.to(index), col[order].to(index), value[order].to(dtype)
    return A, components, [t if t is None else t.to(torch.promote_types(dtype, torch.float32)) for t in (b, x, w, p)]


def csr_tensor(crow, col, values, shape):
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def weights_of(w, p):
    return {"row_weight": w, "penalty_weight": p}


def loss_of(components, columns, kind, form):
    def f(values, b, x, w=None, p=None):
        return OPS.regression_loss_csr(*components[:2], values, columns, b, x, **weights_of(w, p), kind=kind, form=form)

    return f


# Few columns take one read and tiles for the Hessian; many two reads, and pairs of values.
SIZES = [(60, 7, 0.4), (1500, 300, 0.03), (900, 2500, 0.004)]


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_matrix_written_out(size, kind, form, weights):
    n, d, density = size
    A, components, (b, x, w, p) = sparse_problem(n, d, density, index=torch.int32, weights=weights)
    settings = {**weights_of(w, p), "kind": kind, "form": form}
    for curvature in ("none", "gauss_newton", "clipped", "full") if d < 2000 else ("none",):
        ours = OPS.regression_evaluate_csr(*components, d, b, x, **settings, curvature=curvature)
        dense = regression_evaluate(A, b, x, **settings, curvature=curvature)
        scale = (ours[3] - dense[3]).exp()
        torch.testing.assert_close(ours[0], dense[0], rtol=1e-12, atol=1e-12)
        for found, expected in zip(ours[1:3], dense[1:3], strict=True):
            size = expected.abs().max().item() if expected.numel() else 0
            torch.testing.assert_close(found * scale, expected, rtol=1e-11, atol=1e-12 * size)
    v = torch.randn(d, dtype=torch.float64)
    for curvature in ("gauss_newton", "clipped", "full"):
        ours = OPS.regression_hvp_csr(*components, d, b, x, v, **settings, curvature=curvature)
        dense = regression_hvp(A, b, x, v, **settings, curvature=curvature)
        torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-11 * dense.abs().max().item())
    torch.testing.assert_close(
        OPS.regression_loss_csr(*components, d, b, x, **settings),
        oracle.loss(A, b, x, w, p, kind=kind, form=form),
        rtol=1e-11,
        atol=0,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda t: str(t)[6:])
def test_as_accurate_as_the_matrix_written_out(dtype, size):
    n, d, density = size
    for kind in KINDS:
        A, components, (b, x, w, p) = sparse_problem(n, d, density, dtype=dtype)
        A = csr_tensor(*(t.double() if t.is_floating_point() else t for t in components), (n, d)).to_dense()
        settings = {"kind": kind, "form": "normalized"}
        exact = regression_evaluate(A, *(t.double() for t in (b, x, w, p)), **settings)
        dense = regression_evaluate(A.float(), b, x, w, p, **settings)
        ours = OPS.regression_evaluate_csr(*components, d, b, x, **weights_of(w, p), **settings)
        assert ours[1].dtype == torch.float32
        for found, yardstick, truth in zip(ours[:2], dense[:2], exact[:2], strict=True):
            error, reference = (found - truth).abs().max(), (yardstick - truth).abs().max()
            assert error <= 2 * reference + 16 * torch.finfo(torch.float32).eps * truth.abs().max(), (kind, error, reference)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, form):
    _, components, (b, x, w, p) = sparse_problem(5, 3, 0.6)
    f = loss_of(components, 3, kind, form)
    leaves = [t.detach().requires_grad_() for t in (components[2], b, x, w, p)]
    assert gradcheck(f, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, leaves, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("form", FORMS)
def test_func(form):
    A, components, (b, x, w, p) = sparse_problem(6, 4, 0.5)
    ours = loss_of(components, 4, "cosh", form)
    dense = lambda A, b, x, w, p: oracle.loss(A, b, x, w, p, kind="cosh", form=form)  # noqa: E731
    v, batch = torch.randn_like(x), torch.stack([x, 2 * x, -x])
    for transform in (
        lambda f, a: hessian(lambda x: f(a, b, x, w, p))(x),
        lambda f, a: hessian(lambda b: f(a, b, x, w, p))(b),
        lambda f, a: jvp(grad(lambda x: f(a, b, x, w, p)), (x,), (v,))[1],
        lambda f, a: jvp(lambda y: jvp(lambda x: f(a, b, x, w, p), (y,), (v,))[1], (x,), (v,))[1],
        lambda f, a: vmap(grad(lambda x: f(a, b, x, w, p)))(batch),
        lambda f, a: vmap(hessian(lambda x: f(a, b, x, w, p)))(batch),
    ):
        torch.testing.assert_close(transform(ours, components[2]), transform(dense, A), rtol=1e-9, atol=1e-11)


def test_leading_dimensions_broadcast():
    _, (crow, col, values), (b, x, w, _p) = sparse_problem(40, 6, 0.4)
    many = torch.stack([values, -values, 0.5 * values])
    xs = torch.stack([x, 2 * x]).unsqueeze(1)
    found = OPS.regression_loss_csr(crow, col, many, 6, b, xs, row_weight=w)
    alone = [[OPS.regression_loss_csr(crow, col, a, 6, b, y[0], row_weight=w) for a in many] for y in xs]
    torch.testing.assert_close(found, torch.tensor(alone, dtype=torch.float64))
    shifted = torch.stack([col, (col + 1) % 6])
    found = OPS.regression_hvp_csr(crow, shifted, values, 6, b, x, x)
    alone = torch.stack([OPS.regression_hvp_csr(crow, c, values, 6, b, x, x) for c in shifted])
    torch.testing.assert_close(found, alone)
    mapped = vmap(lambda c: OPS.regression_loss_csr(crow, c, values, 6, b, x))(shifted)
    torch.testing.assert_close(mapped, torch.stack([OPS.regression_loss_csr(crow, c, values, 6, b, x) for c in shifted]))
    transposed = OPS._regression_transposed(many, torch.rand(3, 5, 40, dtype=torch.float64), False, crow[None], col[None], 6)
    assert transposed.shape == (3, 5, 6)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_transposed(count, squared):
    A, (crow, col, values), _ = sparse_problem(700, 30, 0.1)
    if squared:  # of values: what stands there in two parts is squared in each
        A = csr_tensor(crow, col, values.square(), A.shape).to_dense()
    weights = torch.randn(count, 700, dtype=torch.float64)
    found = OPS._regression_transposed(values, weights, squared, crow, col, 30)
    torch.testing.assert_close(found, weights @ A, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_empty_rows_columns_and_nothing(index):
    none = torch.zeros(0, dtype=torch.float64)
    for n, d in ((4, 3), (4, 0), (0, 3)):
        crow, col, b = torch.zeros(n + 1, dtype=index), torch.zeros(0, dtype=index), torch.rand(n, dtype=torch.float64)
        x = torch.ones(d, dtype=torch.float64)
        ours = OPS.regression_evaluate_csr(crow, col, none, d, b, x, curvature="full", form="plain")
        dense = regression_evaluate(torch.zeros(n, d, dtype=torch.float64), b, x, curvature="full", form="plain")
        torch.testing.assert_close(ours, dense)
        leaf = none.clone().requires_grad_()
        OPS.regression_loss_csr(crow, col, leaf, d, b, x, form="plain").backward()
        assert leaf.grad is not None and leaf.grad.shape == (0,)
    A = torch.zeros(5, 4, dtype=torch.float64)
    A[1, 2], A[3, 0] = 2, -1  # rows 0, 2, 4 and columns 1, 3 are empty
    csr, b, x = A.to_sparse_csr(), torch.rand(5, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    for settings in ({"curvature": "full"}, {"curvature": "gauss_newton", "form": "normalized", "kind": "sinh"}):
        torch.testing.assert_close(regression_evaluate(csr, b, x, **settings), regression_evaluate(A, b, x, **settings))


def test_components_with_gaps_between_them():
    A, (crow, col, values), (b, x, *_) = sparse_problem(30, 5, 0.5)
    apart = [t.repeat_interleave(2)[::2] for t in (crow, col, values)]
    torch.testing.assert_close(OPS.regression_loss_csr(*apart, 5, b, x), regression_loss(A, b, x))


def test_independent_of_threads():
    _, components, (b, x, w, p) = sparse_problem(4000, 300, 0.05)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            settings = {**weights_of(w, p), "form": "normalized", "curvature": "full"}
            found.append(OPS.regression_evaluate_csr(*components, 300, b, x, **settings))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, c) for other in found[1:] for a, c in zip(found[0], other, strict=True))


BAD = {
    "a column beyond the last": (lambda crow, col: (crow, col.clone().index_fill_(0, torch.tensor([3]), 6)), "col_indices from 0"),
    "a negative column": (lambda crow, col: (crow, col.clone().index_fill_(0, torch.tensor([0]), -1)), "got -1 to"),
    "rows that begin late": (lambda crow, col: (crow + 1, col), "crow_indices from 0 to the number of values"),
    "rows that end early": (lambda crow, col: (crow.clone().index_fill_(0, torch.tensor([len(crow) - 1]), 1), col), "crow_indices"),
    "rows that go back": (lambda crow, col: (crow.clone().index_fill_(0, torch.tensor([5]), 0), col), "never decrease"),
    "a row far away": (lambda crow, col: (crow.clone().index_fill_(0, torch.tensor([5]), 2**30), col), "never decrease"),
}


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bad", BAD)
def test_wrong_indices_are_refused(bad, index):
    _, (crow, col, values), (b, x, *_) = sparse_problem(40, 6, 0.4, index=index)
    crow, col = BAD[bad][0](crow, col)
    rows, numbers = torch.rand(7, 40, dtype=torch.float64), torch.rand(12, dtype=torch.float64)
    for call in (
        lambda: OPS.regression_loss_csr(crow, col, values, 6, b, x),
        lambda: OPS.regression_hvp_csr(crow, col, values, 6, b, x, x),
        lambda: OPS._regression_matvec(values, x, crow, col),
        lambda: OPS._regression_transposed(values, rows, False, crow, col, 6),
        lambda: OPS._regression_curvature(values, rows, numbers, "full", crow, col, 6),
        lambda: Regression(csr_tensor(crow, col, values, (40, 6)), b),
    ):
        with pytest.raises(ValueError, match=f"torch_rescaled::.*{BAD[bad][1]}"):
            call()


def test_wrong_index_where_sums_have_two_reads_and_pairs():
    _, (crow, col, values), (b, x, *_) = sparse_problem(300, 2500, 0.01)
    col[17] = 2500
    for curvature in ("none", "gauss_newton"):
        with pytest.raises(ValueError, match="n_columns - 1 = 2499"):
            OPS.regression_evaluate_csr(crow, col, values, 2500, b, x, curvature=curvature)


def test_components_that_do_not_fit_are_refused():
    _, (crow, col, values), (b, x, *_) = sparse_problem(40, 6, 0.4)
    for components, columns, error, message in (
        ((crow, col[:-1], values), 6, ValueError, r"col_indices of shape \[\*, "),
        ((crow[:-1], col, values), 6, ValueError, r"b of shape \[\*, 39\]"),
        ((crow, col, values), 7, ValueError, r"x of shape \[\*, 7\]"),
        ((crow.double(), col, values), 6, TypeError, "crow_indices of dtype int32 or int64"),
        ((crow.int(), col, values), 6, TypeError, "col_indices of crow_indices' dtype"),
        ((crow, col, values.long()), 6, TypeError, "A of dtype"),
        ((crow[:0], col, values), 6, ValueError, r"crow_indices of shape \[\*, rows \+ 1\]"),
        ((crow, col, values), -1, ValueError, "n_columns >= 0"),
        ((crow.to("meta"), col, values), 6, ValueError, "crow_indices on values's device"),
    ):
        with pytest.raises(error, match=f"torch_rescaled::regression_loss_csr: expected {message}"):
            OPS.regression_loss_csr(*components, columns, b, x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["newton", "lbfgs", "sampled", "cg", "auto"])
def test_solves_as_the_matrix_written_out(method, kind, form):
    A, components, (_, x, *_) = sparse_problem(1500, 12, 0.4, weights=False)
    u = getattr(torch, kind)(A @ x)
    noise = 1 + 0.01 * torch.randn(1500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    b = (u if form == "plain" else u / u.sum()) * noise
    csr = csr_tensor(*components, A.shape)
    options = {"x0": 0.9 * x, "method": method}
    ours, dense = (solve(Regression(a, b, kind=kind, form=form), **options) for a in (csr, A))
    assert ours.status.converged
    torch.testing.assert_close(ours.x, dense.x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_solves_with_many_columns_without_a_matrix_of_their_square(kind):
    n, d = 6000, 2500
    A, components, (_, x, *_) = sparse_problem(n, d, 0.004, weights=False)
    x = 0.3 * x
    b = getattr(torch, kind)(A @ x)
    problem = Regression(csr_tensor(*components, (n, d)), b, kind=kind, form="plain", penalty_weight=torch.full_like(b, 1e-3))
    solution = solve(problem, x0=0.8 * x)
    assert solution.method == "cg" and solution.state.numel() < n * 20
    gradient = regression_evaluate(problem.A, b, solution.x, penalty_weight=problem.penalty_weight, kind=kind, form="plain")[1]
    assert solution.status.converged and gradient.abs().max() < 1e-4
    stopped = solve(problem, x0=0.8 * x, max_iterations=2)
    assert torch.equal(solve(problem, state=stopped.state).x, solution.x)
    with pytest.raises(ValueError, match="at most 16384 columns"):
        wide = csr_tensor(components[0], components[1], components[2], (n, 20000))
        solve(Regression(wide, b), method="newton")


def test_the_derivative_of_a_solution_with_many_columns():
    """By conjugate gradients on products, beside differences of solves, and in the plain form the d x d system of a few columns."""
    n, d, few = 4500, 2100, 5
    torch.manual_seed(0)
    dense = torch.randn(n - d + few, few, dtype=torch.float64) / 3
    row, col = dense.nonzero(as_tuple=True)
    row, col = torch.cat([row, torch.arange(len(dense), n)]), torch.cat([col, torch.arange(few, d)])  # d - few rows of one column
    values = torch.cat([dense.flatten(), torch.ones(d - few, dtype=torch.float64)])
    crow = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(row, minlength=n).cumsum(0)])
    u = (dense @ torch.randn(few, dtype=torch.float64)).exp() * (1 + 0.1 * torch.randn(len(dense), dtype=torch.float64))
    toward, tangent = torch.randn(2, max(n, d), dtype=torch.float64)

    def x_star(b, form, start=None):
        return OPS.solve_regression_csr(crow, col, values, d, b, start, form=form, ftol=0.0)[0]

    b = torch.cat([u, torch.ones(d - few, dtype=torch.float64)]).requires_grad_()
    x = x_star(b, "plain")
    (grad_b,) = torch.autograd.grad(x, b, toward[:d])
    small = u.clone().requires_grad_()
    expected = solve(Regression(dense, small, form="plain"), ftol=0.0).x
    torch.testing.assert_close(x[:few], expected)
    (expected_b,) = torch.autograd.grad(expected, small, toward[:few])
    torch.testing.assert_close(grad_b[: len(u)], expected_b, rtol=1e-10, atol=1e-12)

    b = b.detach() / b.detach().sum() * (1 + 0.1 * torch.randn(n, dtype=torch.float64))
    with forward_ad.dual_level():
        x, found = forward_ad.unpack_dual(x_star(forward_ad.make_dual(b, b * tangent[:n]), "normalized"))
    up, down = (x_star(b * (1 + step * tangent[:n]), "normalized", x.detach()) for step in (1e-4, -1e-4))
    torch.testing.assert_close(found, (up - down) / 2e-4, rtol=0, atol=1e-6 * float(found.abs().max()))


def test_a_solution_is_differentiable_in_the_values():
    A, (crow, col, values), (_, x, w, p) = sparse_problem(60, 4, 0.5)
    b = torch.exp(A @ x)
    leaves = [t.detach().requires_grad_() for t in (values, b, w, p)]

    def f(values, b, w, p):
        return OPS.solve_regression_csr(crow, col, values, 4, b, x, row_weight=w, penalty_weight=0.01 * p, form="plain")[0]

    assert gradcheck(f, leaves, check_forward_ad=True, atol=1e-4)


def test_inputs_of_torch_and_scipy():
    A, components, (b, x, w, p) = sparse_problem(50, 6, 0.4)
    matrix = scipy.sparse.csr_array(tuple(t.numpy() for t in (components[2], components[1], components[0])), shape=(50, 6))
    v = torch.randn_like(x)
    for given in (csr_tensor(*components, (50, 6)), matrix, matrix.tocoo(), matrix.tocsc()):
        torch.testing.assert_close(regression_loss(given, b, x, w, p), regression_loss(A, b, x, w, p))
        torch.testing.assert_close(regression_evaluate(given, b, x)[1], regression_evaluate(A, b, x)[1])
        torch.testing.assert_close(regression_hvp(given, b, x, v), regression_hvp(A, b, x, v))
        torch.testing.assert_close(
            torch_rescaled.newton_step(given, b, x, damping=1e-3), torch_rescaled.newton_step(A, b, x, damping=1e-3)
        )
        assert Regression(given, b).A.shape == (50, 6)
    with pytest.raises(ValueError, match=r"a dense \(strided\) A, got layout"):
        regression_loss(A.to_sparse(), b, x)


def test_compile_and_autocast():
    _, (crow, col, values), (b, x, w, p) = sparse_problem(20, 5, 0.5)

    def f(values, x):
        value = OPS.regression_loss_csr(crow, col, values, 5, b, x, **weights_of(w, p), form="normalized")
        return value + grad(lambda y: OPS.regression_loss_csr(crow, col, values, 5, b, y))(x).square().sum()

    leaves = values.detach().requires_grad_(), x.detach().requires_grad_()
    expected = torch.autograd.grad(f(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=True)(*leaves), leaves)
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        loss = OPS.regression_loss_csr(crow, col, values.bfloat16(), 5, b.float(), x.bfloat16(), form="normalized")
        assert loss.dtype == torch.float32


def test_flops_of_a_backward_go_with_the_values():
    _, components, (b, x, *_) = sparse_problem(20, 5, 0.5)
    leaves = [t.detach().requires_grad_() for t in (components[2], b, x)]
    with FlopCounterMode(display=False) as counter:
        (along,) = torch.autograd.grad(loss_of(components, 5, "exp", "normalized")(*leaves), leaves[2], create_graph=True)
        along.sum().backward()
    values = len(components[2])
    assert counter.get_total_flops() > 8 * values and counter.get_total_flops() % values == 0


def samples():
    _, (crow, col, values), (b, x, w, p) = sparse_problem(5, 3, 0.5)
    head, point, pattern = (crow, col, values, 3, b), (values, b, x, w, p), {"crow_indices": crow, "col_indices": col}
    one, numbers = torch.ones((), dtype=torch.float64), torch.rand(12, dtype=torch.float64)
    rows, flags = torch.rand(7, 5, dtype=torch.float64), [True] * 6
    return {
        "regression_loss_csr": ((*head, x.detach().requires_grad_()), {"kind": "cosh"}),
        "regression_evaluate_csr": ((*head, x), {"form": "plain", "curvature": "clipped"}),
        "regression_hvp_csr": ((*head, x, x), {"form": "normalized"}),
        "_regression_forward": ((*point, "exp", "rescaled"), pattern),
        "_regression_backward": ((one, *point, x, "exp", "rescaled", flags[:5]), pattern),
        "_regression_jvp": ((*point, *point, x, "sinh", "normalized"), pattern),
        "_regression_double_backward": ((*point, one, *point, x, "exp", "plain", flags), pattern),
        "_regression_evaluate": ((*point, "exp", "rescaled"), pattern),
        "_regression_product": ((*point, x, "exp", "rescaled", "full"), pattern),
        "_regression_matvec": ((values, x), pattern),
        "_regression_transposed": ((values, rows), pattern | {"n_columns": 3}),
        "_regression_curvature": ((values, rows, numbers, "full"), pattern | {"n_columns": 3}),
        "_regression_part": ((*point, "exp", "rescaled"), pattern),
        "_regression_part_gram": ((values, rows, "full"), pattern | {"n_columns": 3}),
    }


def test_every_operator_has_a_sample():
    names = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("torch_rescaled::")}
    on_the_host = {"newton_step_csr", "solve_regression_csr"}  # look at numbers: no fake tensors
    assert {n for n in names if n.endswith("_csr")} == {n for n in samples() if n.endswith("_csr")} | on_the_host


@pytest.mark.parametrize("name", samples())
def test_opcheck(name):
    args, kwargs = samples()[name]
    utils = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    opcheck(getattr(OPS, name).default, args, kwargs, test_utils=utils)
