# SPDX-License-Identifier: BSD-3-Clause
"""Matrix regression operators: value, gradient, Hessian products and scale against the definition."""

import itertools
from functools import partial

import hypothesis
import oracle_matrix_regression as oracle
import pytest
import torch
from hypothesis import strategies as st
from oracle_matrix_regression import FORMS, KINDS
from torch.autograd import forward_ad
from torch.func import grad, jacrev

from torch_rescaled import matrix_regression_evaluate, matrix_regression_hvp, matrix_regression_loss

MASKS = ("none", "elements", "keys", "causal")


def options(mask, n1, n2):
    kept = (torch.rand(n1, n2, device="cpu") < 0.7).to(torch.get_default_device())
    if mask == "elements" and n1 > 2:
        kept[1] = False  # a row without elements
    return {
        "none": {},
        "elements": {"attn_mask": kept},
        "keys": {"attn_mask": kept[:1] if n1 else torch.ones(1, n2, dtype=torch.bool)},
        "causal": {"is_causal": True, "regularization": 0.3},
    }[mask]


def derivatives(f, tensors, tangents):
    """Loss, gradients, JVP, and second derivatives along the tangents, of X alone and of all arguments."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    value = f(*leaves)
    gradients = torch.autograd.grad(value.sum(), leaves, create_graph=True)
    of_X = torch.autograd.grad((gradients[1] * tangents[1]).sum(), leaves, retain_graph=True)
    of_all = torch.autograd.grad(sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)), leaves)
    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(f(*(forward_ad.make_dual(t, v) for t, v in zip(tensors, tangents, strict=True)))).tangent
    return [value, *gradients, *of_X, *of_all, moved]


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_derivatives(kind, form, mask, dtype):
    """As exact as the definition in the same dtype: twice its error, and a few units in the last place.

    In float64 the definition is the truth, and its error in no yardstick.
    """
    units = 64 if dtype == torch.float32 else 512
    for (n1, n2, d1, d2), batch in itertools.product([(5, 7, 3, 4), (70, 130, 6, 9), (1, 1, 1, 1)], [(), (2,)]):
        torch.manual_seed(n1)
        tensors = oracle.problem(n1, n2, d1, d2, batch, dtype=dtype, shared=("A2",))
        tangents = [torch.randn_like(t) for t in tensors]
        settings = {"kind": kind, "form": form, **options(mask, n1, n2)}
        ours = derivatives(partial(matrix_regression_loss, **settings), tensors, tangents)
        definition = partial(oracle.loss, **settings)
        plain = derivatives(definition, tensors, tangents)
        exact = derivatives(definition, [t.double() for t in tensors], [t.double() for t in tangents])
        V, detached = tangents[1], [t.detach() for t in tensors]
        ours.append(matrix_regression_hvp(*detached, V, **settings))
        plain.append(plain[6]), exact.append(exact[6])
        eps = torch.finfo(dtype).eps
        for number, (a, b, t) in enumerate(zip(ours, plain, exact, strict=True)):
            assert a.shape == t.shape and a.dtype == dtype
            size = t.abs().max() + exact[0].abs().max()
            error, yardstick = (a.double() - t).abs().max(), (b.double() - t).abs().max()
            assert error <= 2 * yardstick + units * eps * size, (
                f"{number}: {error:.1e}, the definition's {yardstick:.1e}, size {size:.1e}"
            )


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_gauss_newton_is_that_of_the_residual(kind, form):
    A1, X, A2, B = oracle.problem(6, 5, 3, 2)
    V = torch.randn_like(X)

    def residual(X):
        u = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}[kind](A1 @ X @ A2.mT)
        total = u.sum(-1, keepdim=True)
        return {"rescaled": u - total * B, "normalized": u / total - B, "plain": u - B}[form]

    J = jacrev(residual)(X).reshape(30, 6)
    expected = (J.T @ (J @ V.reshape(6))).reshape(3, 2) + 0.5 * A1.mT @ A1 @ V @ A2.mT @ A2
    found = matrix_regression_hvp(A1, X, A2, B, V, kind=kind, form=form, regularization=0.5, curvature="gauss_newton")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_takes_the_scale_out(kind, form, dtype):
    A1, X, A2, B = oracle.problem(9, 40, 3, 4, dtype=dtype)
    log_loss, gradient, log_scale = matrix_regression_evaluate(A1, X, A2, B, kind=kind, form=form, regularization=0.1)
    exact = [t.double() for t in (A1, X, A2, B)]
    truth = oracle.loss(*exact, kind=kind, form=form, regularization=0.1)
    tolerance = 300 * torch.finfo(dtype).eps
    torch.testing.assert_close(log_loss.double(), truth.log(), rtol=tolerance, atol=tolerance)
    true_gradient = grad(lambda x: oracle.loss(exact[0], x, *exact[2:], kind=kind, form=form, regularization=0.1))(exact[1])
    found = gradient.double() * log_scale.double().exp()
    torch.testing.assert_close(found, true_gradient, rtol=tolerance, atol=tolerance * true_gradient.abs().max().item())

    far = X * ((300 if dtype == torch.float32 else 600) / (A1 @ X @ A2.mT).abs().max())
    log_loss, gradient, log_scale = matrix_regression_evaluate(A1, far, A2, B, kind=kind, form=form)
    assert log_loss.isfinite() and gradient.isfinite().all() and gradient.abs().max() > 0 and log_scale.isfinite()
    if form != "normalized":
        assert matrix_regression_loss(A1, far, A2, B, kind=kind, form=form).isinf()


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_evaluate_of_tiny_losses_beside_empty_rows(dtype):
    A1, X, A2, B = oracle.problem(9, 40, 3, 4, dtype=dtype)
    A1, A2 = A1.abs() + 0.1, A2.abs() + 0.1
    low = -X.abs() * (300 if dtype == torch.float32 else 600)
    kept = torch.ones(9, 40, dtype=torch.bool)
    kept[2] = False
    log_loss, gradient, _ = matrix_regression_evaluate(A1, low, A2, B, attn_mask=kept)
    assert log_loss.isfinite() and log_loss < -80 and gradient.abs().max() > 0 and gradient.isfinite().all()
    penalized = matrix_regression_evaluate(A1, low, A2, B, attn_mask=kept, regularization=0.1)
    expected = 0.1 * A1.mT @ A1 @ low @ A2.mT @ A2
    torch.testing.assert_close(penalized[1] * penalized[2].exp(), expected, rtol=1e-4, atol=0)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("order", ["as drawn", "small first", "hidden first"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_small_residual_is_exact(kind, form, order):
    """Where sums of u^2, u B and B^2 apart would have no digit left; whatever the first columns are like."""
    A1, X, A2, _ = (t.double() for t in oracle.problem(20, 400, 3, 4, dtype=torch.float32))
    X = (12 * X).float().double()  # a peaked map
    A2 = A2[(A1 @ X @ A2.mT).exp().sum(0).argsort()] if order == "small first" else A2
    kept = torch.ones(1, 400, dtype=torch.bool)
    kept[:, : 150 if order == "hidden first" else 0] = False
    u = torch.where(kept, {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}[kind](A1 @ X @ A2.mT), 0.0)
    B = u if form == "plain" else u / u.sum(-1, keepdim=True)
    B = (B * (1 + 1e-3 * torch.randn_like(B))).float().double()
    exact = [A1, X, A2, B]
    truth = oracle.loss(*exact, attn_mask=kept, kind=kind, form=form)
    log_loss, _, _ = matrix_regression_evaluate(*(t.float() for t in exact), attn_mask=kept, kind=kind, form=form)
    in_float = oracle.loss(*(t.float() for t in exact), attn_mask=kept, kind=kind, form=form).double()
    error, yardstick = abs(log_loss.double().exp() / truth - 1), abs(in_float / truth - 1)
    assert error <= 4 * yardstick + 1e-2, f"{error:.1e}, the definition's {yardstick:.1e}"


@pytest.mark.usefixtures("on_device")
def test_what_a_mask_hides_is_never_read():
    A1, X, A2, B = oracle.problem(30, 50, 3, 4)
    kept = torch.rand(30, 50) < 0.5
    spoiled = torch.where(kept, B, torch.tensor([float("nan"), float("inf")], dtype=B.dtype).repeat(25))
    for kind, form in itertools.product(KINDS, FORMS):
        found = []
        for target in (B, spoiled):
            leaves = [t.detach().requires_grad_() for t in (A1, X, A2, target)]
            loss = matrix_regression_loss(*leaves, attn_mask=kept, kind=kind, form=form)
            found.append([loss, *torch.autograd.grad(loss, leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert (found[0][4][~kept] == 0).all()


@hypothesis.given(
    n1=st.integers(1, 80), n2=st.integers(1, 300), d=st.integers(1, 40), kind=st.sampled_from(KINDS),
    form=st.sampled_from(FORMS), mask=st.sampled_from(MASKS), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(n1, n2, d, kind, form, mask, seed):
    torch.manual_seed(seed)
    A1, X, A2, B = oracle.problem(n1, n2, 3, d)
    settings = {"kind": kind, "form": form, **options(mask, n1, n2)}
    expected = oracle.loss(A1, X, A2, B, **settings)
    hypothesis.assume(expected < 1e6)  # away from the pole of sinh
    torch.testing.assert_close(matrix_regression_loss(A1, X, A2, B, **settings), expected, rtol=1e-8, atol=1e-12)
    gradients = [grad(lambda x, f=f: f(A1, x, A2, B, **settings))(X) for f in (matrix_regression_loss, oracle.loss)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-8 * (1 + gradients[1].abs().max().item()))
