# SPDX-License-Identifier: BSD-3-Clause
"""Loss, Hessian and every derivative against the definition in float64, by the error of the definition in the same dtype."""

import math

import oracle_regression as oracle
import pytest
import torch
from helpers import dtype_name
from oracle_regression import FORMS, KINDS

import torch_rescaled
from torch_rescaled import regression_evaluate, regression_hvp, regression_loss

pytestmark = pytest.mark.usefixtures("on_device")
OPS = torch.ops.torch_rescaled
NAMES = ("A", "b", "x", "row_weight", "penalty_weight")


def present(tensors):
    return [t for t in tensors if t is not None]


def call(op, tensors, **settings):
    A, b, x, row_weight, penalty_weight = tensors
    return op(A, b, x, row_weight=row_weight, penalty_weight=penalty_weight, **settings)


def derivatives(f, tensors, cotangent, tangents):
    """loss, gradient, jvp and double backward of f(*tensors), as lists; None where an input is absent."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    value = f(*leaves)
    gradient = torch.autograd.grad(value, present(leaves), cotangent, create_graph=True)
    along = sum((g * t).sum() for g, t in zip(gradient, present(tangents), strict=True))
    second = torch.autograd.grad(along, present(leaves))
    if any(t is not None and 0 in t.stride() for t in tensors):  # PyTorch makes no duals of them
        return {"loss": [value], "gradient": list(gradient), "double backward": list(second)}
    with torch.autograd.forward_ad.dual_level():
        duals = [
            None if t is None else torch.autograd.forward_ad.make_dual(t.detach(), v)
            for t, v in zip(tensors, tangents, strict=True)
        ]
        moved = torch.autograd.forward_ad.unpack_dual(f(*duals)).tangent
    # The JVP is a sum over the inputs, which may cancel: beside it stands the size of its terms.
    terms = sum((g * t).abs().sum() for g, t in zip(gradient, present(tangents), strict=True))
    return {"loss": [value], "gradient": list(gradient), "jvp": [moved], "terms": [terms], "double backward": list(second)}


def found_in_all(*results):
    return [name for name in results[0] if name != "terms" and all(name in r for r in results)]


def assert_as_accurate(ours, composite, truth, eps, where=""):
    """error(ours) <= 2 error(the definition in the same dtype) + 16 eps max|truth|, of a JVP the size of its terms."""
    for name in found_in_all(ours, composite, truth):
        for i, (a, b, t) in enumerate(zip(ours[name], composite[name], truth[name], strict=True)):
            assert a.shape == t.shape and a.dtype == b.dtype, f"{where} {name}[{i}]"
            if t.numel() == 0:
                continue
            error, yardstick = (a.double() - t).abs().max(), (b.double() - t).abs().max()
            size = truth["terms"][0] if name == "jvp" else t.abs().max()
            bound = 2 * yardstick + 16 * eps * size
            assert error <= bound, f"{where} {name}[{i}]: error {error:.2e}, bound {bound:.2e}"


def check(tensors, **settings):
    def ours(*x):
        return call(regression_loss, x, **settings)

    def definition(*x):
        return oracle.loss(*x, **settings)

    exact = [None if t is None else t.double() for t in tensors]
    arithmetic = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    value = definition(*exact)
    cotangent = torch.rand(value.shape, dtype=torch.float64) + 0.5
    along = [None if t is None else (torch.rand(t.shape, dtype=torch.float64) - 0.5).to(t.dtype) for t in tensors]
    cotangent = cotangent.to(arithmetic)
    truth = derivatives(definition, exact, cotangent.double(), [None if t is None else t.double() for t in along])
    found = derivatives(ours, tensors, cotangent, along)
    low = [None if t is None else t.to(arithmetic) for t in tensors]
    # In float64 the truth is no more exact than ours: inputs of another rounding show how far rounding carries.
    nudged = [None if t is None else t * (1 + 4 * torch.finfo(arithmetic).eps) for t in low] if arithmetic == torch.float64 else low
    yardstick = derivatives(definition, nudged, cotangent, [None if t is None else t.to(arithmetic) for t in along])
    if tensors[0].dtype != arithmetic:  # A's gradient is rounded to its dtype
        for name in ("gradient", "double backward"):
            yardstick[name][0] = yardstick[name][0].to(tensors[0].dtype)
            eps = torch.finfo(tensors[0].dtype).eps
            a, t = found[name][0].double(), truth[name][0]
            assert (a - t).abs().max() <= eps * t.abs().max() + 1e-5 * t.abs().max()
            found[name], truth[name], yardstick[name] = found[name][1:], truth[name][1:], yardstick[name][1:]
    assert_as_accurate(found, yardstick, truth, torch.finfo(arithmetic).eps)


@pytest.mark.parametrize("weights", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=dtype_name)
def test_every_derivative(dtype, kind, form, weights):
    check(oracle.problem(37, 5, weights=weights, dtype=dtype), kind=kind, form=form)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 8), (700, 3), (1030, 16), (301, 64), (90, 257)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
def test_shapes(dtype, shape):
    for kind, form in (("exp", "rescaled"), ("sinh", "normalized"), ("cosh", "plain")):
        if shape[0] > 1 or form != "normalized":  # one row, normalized: a constant
            check(oracle.problem(*shape, weights=True, dtype=dtype), kind=kind, form=form)


@pytest.mark.parametrize(
    "shared", [("A",), ("x",), ("b", "row_weight"), ("A", "b", "x", "penalty_weight")], ids=lambda s: "+".join(s)
)
@pytest.mark.parametrize("form", FORMS)
def test_batches_broadcast(form, shared):
    check(oracle.problem(23, 4, (3, 2), weights=True, shared=shared), kind="exp", form=form)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "reversed strides"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
def test_strides(dtype, layout):
    tensors = oracle.problem(130, 6, weights=True, dtype=dtype)
    if layout == "transposed":
        tensors[0] = tensors[0].mT.contiguous().mT
    elif layout == "sliced":
        tensors = [
            torch.full([2 * n + 1 for n in t.shape], math.nan, dtype=t.dtype)[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)
            for t in tensors
        ]
    elif layout == "expanded":
        tensors[1] = tensors[1][:1].expand(130)
        tensors[2] = tensors[2][:1].expand(6)
    else:
        tensors[0] = tensors[0].T.contiguous().T[:, :]
    check(tensors, kind="sinh", form="rescaled")


@pytest.mark.parametrize("penalized", [True, False])
@pytest.mark.parametrize("curvature", ["gauss_newton", "clipped", "full"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_hessian_and_products(kind, form, curvature, penalized):
    tensors = oracle.problem(60, 7, (2,), weights=True)
    if not penalized:
        tensors[4] = None
    v = torch.randn(2, 7, dtype=torch.float64)
    log_loss, gradient, hessian, log_scale = call(regression_evaluate, tensors, kind=kind, form=form, curvature=curvature)
    product = call(lambda A, b, x, **k: regression_hvp(A, b, x, v, **k), tensors, kind=kind, form=form, curvature=curvature)
    for i in range(2):
        point = [t[i] for t in present(tensors)] + ([] if penalized else [torch.zeros(60, dtype=torch.float64)])
        value, full, J, residual = definition_at(point, kind, form)
        ours = hessian[i] * log_scale[i].exp()
        if curvature == "full":
            torch.testing.assert_close(ours, full, rtol=1e-9, atol=1e-12)
        if curvature == "gauss_newton":
            torch.testing.assert_close(ours, J.T @ J, rtol=1e-9, atol=1e-12)
        if curvature == "clipped":
            more = ours - J.T @ J  # A^T diag(positive) A
            assert torch.linalg.eigvalsh(more).min() > -1e-9 * ours.abs().max()
        torch.testing.assert_close(product[i], ours @ v[i], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient[i] * log_scale[i].exp(), J.T @ residual, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(log_loss[i].exp(), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("columns", [1, 3, 12, 48, 80, 300, 1200])  # also fewer than lanes that share a row read
def test_infinite_numbers_reach_their_rows_alone(columns, dtype):
    A = torch.ones(70, columns, dtype=dtype)
    A[3, 0], A[68, -1] = math.inf, -math.inf
    x = torch.full((columns,), 0.5, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(OPS._regression_matvec(A, x), A.to(x.dtype) @ x, rtol=0, atol=0)  # sums of halves are exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_gauss_newton_in_one_read_is_that_of_resident_rows(kind, form, dtype):
    """Over many blocks and chunks, with logits that grow along them: every block raises the exponent."""
    A, b, x, w, _ = oracle.problem(9000, 30, weights=True, dtype=dtype)
    A, b = A[(A @ x).argsort()] * 4, b / b.sum()
    statistics, gradient, hessian = OPS._regression_gauss_newton(A, b, x, w, kind, form)
    logits = OPS._regression_matvec(A, x)
    expected = OPS._regression_statistics(logits, None, None, b, w, None, kind, form)[0]
    rows = OPS._regression_rows(logits, expected, b, w, None, kind, form)
    curved = OPS._regression_curvature(A, rows, expected, "gauss_newton")[1]
    scale = (statistics[0] - expected[0]).exp()  # log_scale: the two may differ by a power of 2
    eps = torch.finfo(dtype).eps
    a, (_, diagonal, _, p, q, *_) = A.double().abs(), rows.double().abs()
    sides = torch.stack([p, q]) @ a
    # The sizes of its terms, before they cancel.
    size = a.mT @ (diagonal[:, None] * a) + 2 * sides[0].outer(sides[1]) + expected[7] * sides[0].outer(sides[0])
    assert ((hessian * scale - curved).abs() <= 20 * eps * size).all()
    alone = OPS._regression_evaluate(A, b, x, w, None, kind, form)
    torch.testing.assert_close([statistics, gradient], list(alone), rtol=100 * eps, atol=100 * eps * gradient.abs().max().item())


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_sums_of_rows(count, dtype, squared):
    """Batches that broadcast, rows over several chunks and blocks, columns over whole vectors and a rest; and the plain formula."""
    A = torch.randn(2, 5000, 43, dtype=torch.float64).to(dtype)
    weights = torch.randn(1, count, 5000, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    found = OPS._regression_transposed(A, weights, squared)
    a = A.double().square() if squared else A.double()
    size = weights.double().abs() @ a.abs()
    assert found.dtype == weights.dtype
    assert ((found.double() - weights.double() @ a).abs() <= 30 * torch.finfo(weights.dtype).eps * size).all()
    turned = OPS._regression_transposed(A.mT.contiguous().mT, weights[0].mT.contiguous().mT[None], squared)
    torch.testing.assert_close(turned, found, rtol=1e-5, atol=1e-5 * size.max().item())
    empty = OPS._regression_transposed(A[:, :0], weights[..., :0], squared)
    assert torch.equal(empty, torch.zeros_like(found))


def definition_at(point, kind, form):
    """Loss, Hessian, and Jacobian and value of the residual (with the penalty's) whose squares the loss adds up."""
    A, b, x, w, p = point

    def residual(x):
        u = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}[kind](A @ x)
        c = {"rescaled": u - u.sum() * b, "normalized": u / u.sum() - b, "plain": u - b}[form]
        return torch.cat([w.sqrt() * c, p * (A @ x)])

    def loss(x):
        return oracle.loss(A, b, x, w, p, kind=kind, form=form)

    functional = torch.autograd.functional
    return loss(x), functional.hessian(loss, x), functional.jacobian(residual, x), residual(x)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 600.0), (torch.float32, 300.0)], ids=dtype_name)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_is_finite_where_the_loss_is_not(kind, form, dtype, size):
    """Against extended precision: mpmath on the same logits."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.prec = 300
    A = torch.tensor([[1.0, 0.5], [0.5, -1.0], [-1.0, 0.25], [0.96875, 0.5]], dtype=dtype)
    x, b = torch.tensor([size, 2.0], dtype=dtype), torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=dtype)
    function = {"exp": mpmath.exp, "cosh": mpmath.cosh, "sinh": mpmath.sinh}[kind]
    slope = {"exp": mpmath.exp, "cosh": mpmath.sinh, "sinh": mpmath.cosh}[kind]
    z = [mpmath.mpf(t) for t in (A.double() @ x.double()).tolist()]
    u, du, aim = [function(t) for t in z], [slope(t) for t in z], [mpmath.mpf(t) for t in b.tolist()]
    total, rows = sum(u), range(4)
    unit = total if form != "plain" else mpmath.mpf(1)
    c = [u[i] - unit * aim[i] for i in rows]
    if form == "normalized":
        f, c = [t / total for t in u], [t / total for t in c]
        inner = sum(f[i] * c[i] for i in rows)
        g = [du[i] / total * (c[i] - inner) for i in rows]
    else:
        inner = sum(aim[i] * c[i] for i in rows) if form == "rescaled" else 0
        g = [du[i] * (c[i] - inner) for i in rows]
    truth = [sum(g[i] * mpmath.mpf(A[i, j].item()) for i in rows) for j in range(2)]
    log_loss, gradient, _, log_scale = regression_evaluate(A, b, x, kind=kind, form=form)
    _, again, hessian, scale_again = regression_evaluate(A, b, x, kind=kind, form=form, curvature="full")
    assert all(t.isfinite().all() for t in (log_loss, gradient, log_scale, again, hessian))
    expected = mpmath.log(sum(t * t for t in c) / 2)
    tolerance = 200 * torch.finfo(dtype).eps
    assert abs(log_loss.item() - float(expected)) <= tolerance * (1 + abs(float(expected)))
    slopes = [t / total for t in du] if form == "normalized" else du
    size_of = sum(abs(slopes[i]) * (abs(c[i]) + abs(inner)) for i in rows)  # of the terms, before they cancel
    for found, scale in ((gradient, log_scale), (again, scale_again)):
        for j in range(2):
            error = abs(mpmath.mpf(found[j].item()) * mpmath.exp(mpmath.mpf(scale.item())) - truth[j])
            assert error <= size * tolerance * size_of
    if form != "normalized":
        assert torch_rescaled.regression_loss(A, b, x, kind=kind, form=form) == math.inf


def test_centered_accumulation_near_the_solution():
    """In float32 a loss of 1e-12 of its terms is right to a few percent: plain sums of squares would have no digit of it."""
    A = torch.randn(4000, 8) / 8**0.5
    x = torch.randn(8)
    near = x + 1e-4 * torch.randn(8)
    exact = A.double(), torch.softmax(A.double() @ x.double(), 0)
    for form in ("rescaled", "normalized"):
        truth = oracle.loss(exact[0], exact[1].float().double(), near.double(), kind="exp", form=form)
        ours = regression_loss(A, exact[1].float(), near, form=form)
        assert abs(ours.double() / truth - 1) < 0.05
