# SPDX-License-Identifier: BSD-3-Clause
"""attention_loss against its definition, at every order, in every transform; its limits, and what it refuses."""

import math

import oracle
import pytest
import torch
from helpers import DTYPES, HALF, dtype_name
from torch.autograd import gradcheck, gradgradcheck

import torch_rescaled
from torch_rescaled import attention_loss, attention_with_normalizer

ALL_KINDS = ("exp", "cosh", "sinh", "signed")
FORMS = ("rescaled", "normalized")
CASES = [(kind, form) for kind in ALL_KINDS for form in FORMS]


def definition(q, k, v, target, bias=None, mask=None, *, kind, form, causal=False, scale=None, row_scale=None, group=1):
    """1/2 |U V - D B|^2 e^(-2 t) or 1/2 |U V / D - B|^2 for each row, from unshifted exponentials."""
    k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    allowed = torch.ones(s.shape[-2:], dtype=torch.bool)
    allowed = (allowed.tril() if causal else allowed) & (True if mask is None else mask)
    weight = torch.where(allowed, torch.ones_like(s) if bias is None else bias.exp(), torch.zeros_like(s))
    u = weight * {"exp": s.exp(), "cosh": s.cosh(), "sinh": s.sinh(), "signed": s.sinh()}[kind]
    d = (weight * s.cosh() if kind == "signed" else u).sum(-1, keepdim=True)
    if form == "normalized":
        return (u @ v / torch.where(d == 0, torch.ones_like(d), d) - target).square().sum(-1) / 2
    return (u @ v - d * target).square().sum(-1) / 2 * (1.0 if row_scale is None else (-2 * row_scale).exp())


def inputs(dtype=torch.float64, batch=(2, 4), kv_batch=(2, 4), n=7, m=9, d=6, dv=5):
    """Scores of one sign: the sum of sinh has no zero near."""
    q, k = torch.rand(*batch, n, d, dtype=torch.float64) + 0.2, torch.rand(*kv_batch, m, d, dtype=torch.float64) + 0.2
    v, target = torch.randn(*kv_batch, m, dv, dtype=torch.float64), torch.randn(*batch, n, dv, dtype=torch.float64)
    return [t.to(dtype).requires_grad_() for t in (q, k, v, target)]


@pytest.mark.parametrize("feature", ["plain", "bias", "mask", "causal", "gqa", "row scale"])
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_value_and_derivatives_equal_the_definition(kind, form, feature):
    if feature == "row scale" and form == "normalized":
        with pytest.raises(ValueError, match="log_row_scale only with form 'rescaled', got it with form 'normalized'"):
            attention_loss(*inputs(), form=form, log_row_scale=torch.zeros(7, dtype=torch.float64))
        return
    x = inputs(kv_batch=(2, 2) if feature == "gqa" else (2, 4))
    if feature == "bias":
        x.append(torch.randn(2, 1, 7, 9, dtype=torch.float64, requires_grad=True))
    mask = torch.rand(2, 1, 7, 9) > 0.3 if feature == "mask" else None
    row_scale = torch.randn(2, 4, 7, dtype=torch.float64) if feature == "row scale" else None
    causal, group = feature == "causal", 2 if feature == "gqa" else 1

    def ours(q, k, v, target, bias=None):
        rows = attention_loss(
            q, k, v, target, mask if bias is None else bias, causal, kind=kind, form=form, enable_gqa=group == 2,
            log_row_scale=row_scale, reduction="none",
        )  # fmt: skip
        return (rows,)

    def dense(q, k, v, target, bias=None):
        return (definition(q, k, v, target, bias, mask, kind=kind, form=form, causal=causal, row_scale=row_scale, group=group),)

    cotangents, tangents = [torch.randn(2, 4, 7, dtype=torch.float64)], [torch.randn_like(t) for t in x]
    got, expected = (oracle.derivatives(f, x, cotangents, tangents) for f in (ours, dense))
    for name in expected:
        for a, b in zip(got[name], expected[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * b.abs().max().item(), msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_no_less_accurate_than_the_definition_in_the_same_dtype(kind, form, dtype):
    x = inputs(dtype, n=33, m=65, d=16, dv=16)
    row_scale = torch.full((33,), math.log(65.0), dtype=torch.float32) if form == "rescaled" else None
    scale = None if row_scale is None else row_scale.to(dtype)
    ours = attention_loss(*x, kind=kind, form=form, log_row_scale=scale, reduction="mean")
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    composite = definition(*x, kind=kind, form=form, row_scale=scale).mean()
    exact = [t.detach().double().requires_grad_() for t in x]
    truth = definition(*exact, kind=kind, form=form, row_scale=None if scale is None else scale.double()).mean()
    eps = torch.finfo(dtype).eps
    results = [torch.autograd.grad(loss, point) for loss, point in ((ours, x), (composite, x), (truth, exact))]
    for a, b, t in zip((ours, *results[0]), (composite, *results[1]), (truth, *results[2]), strict=True):
        error, yardstick = ((y.double() - t).abs().max().item() for y in (a, b))
        yardstick = yardstick if math.isfinite(yardstick) else 0.0
        size = max(t.abs().max().item(), truth.item() / 33 if dtype in HALF else 0.0)
        assert error <= 2 * yardstick + 16 * eps * size, f"error {error:.1e}, the definition's {yardstick:.1e}"


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_reductions_and_logarithms(kind, form, reduction):
    x = inputs()
    rows = definition(*x, kind=kind, form=form)
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]
    torch.testing.assert_close(attention_loss(*x, kind=kind, form=form, reduction=reduction), expected)
    torch.testing.assert_close(attention_loss(*x, kind=kind, form=form, reduction=reduction, log=True), expected.log())


def test_the_papers_forms():
    """arXiv:2305.00660: 1/2 |u - <u, 1> b|^2 of one row and values I; arXiv:2309.07418: L(X, Y) without the factor 1/2."""
    z, b, n = torch.randn(1, 9, dtype=torch.float64), torch.rand(1, 9, dtype=torch.float64), 9
    identity = torch.eye(n, dtype=torch.float64)
    for kind, phi in (("exp", torch.exp), ("cosh", torch.cosh), ("sinh", torch.sinh)):
        u = phi(z)
        got = attention_loss(z, identity, identity, b, scale=1.0, kind=kind)  # query = A x, keys and values I: scores z
        torch.testing.assert_close(got, (u - u.sum() * b).square().sum() / 2)
    a1, a2, a3 = (torch.randn(n, 4, dtype=torch.float64) for _ in range(3))
    x, y, target = (
        torch.randn(4, 4, dtype=torch.float64),
        torch.randn(4, 4, dtype=torch.float64),
        torch.randn(n, 4, dtype=torch.float64),
    )
    paper = ((a1 @ x @ a2.T).softmax(-1) @ a3 @ y - target).square().sum()
    got = attention_loss(a1 @ x, a2, a3 @ y, target, scale=1.0, form="normalized")
    torch.testing.assert_close(2 * got, paper)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_gradcheck(kind, form, log):
    x = [t.detach()[:1, :1, :3, :3].requires_grad_() for t in inputs()]
    t = torch.randn(3, dtype=torch.float64, requires_grad=True) if form == "rescaled" else None

    def f(*y):
        return attention_loss(
            *y[:4], kind=kind, form=form, log=log, log_row_scale=y[4] if t is not None else None, reduction="sum" if log else "none"
        )

    x = x if t is None else [*x, t]
    checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(f, x, fast_mode=False, **checks)
    assert gradgradcheck(f, x, fast_mode=False, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("form", FORMS)
def test_rows_without_keys(form):
    x = inputs()
    mask = torch.ones(7, 9, dtype=torch.bool)
    mask[2] = False
    out = attention_loss(*x, mask, form=form, reduction="none", log_row_scale=_normalizer(x, mask) if form == "rescaled" else None)
    expected = x[3][..., 2, :].square().sum(-1) / 2 if form == "normalized" else torch.zeros(2, 4, dtype=torch.float64)
    torch.testing.assert_close(out[..., 2], expected)
    grads = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert (grads[0][..., 2, :] == 0).all()
    second = torch.autograd.grad([(g * torch.randn_like(g)).sum() for g in grads], x)
    assert all(g.isfinite().all() for g in (*grads, *second)) and (second[0][..., 2, :] == 0).all()
    log = attention_loss(*x, mask, form=form, log=True)
    torch.testing.assert_close(log, attention_loss(*x, mask, form=form).log())
    assert all(g.isfinite().all() for g in torch.autograd.grad(log, x))


def _normalizer(x, mask=None):
    return attention_with_normalizer(*x[:3], mask)[2].detach()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_beyond_the_largest_number_the_logarithm_is_finite(kind):
    q, k, v, target = (t.detach().requires_grad_() for t in inputs(torch.float32))
    big = (40 * q).detach().requires_grad_()
    keys = (10 * k).detach().requires_grad_()
    assert attention_loss(big, keys, v, target, kind=kind).isinf()
    log = attention_loss(big, keys, v, target, kind=kind, log=True)
    exact = [t.detach().double() for t in (big, keys, v, target)]
    torch.testing.assert_close(log.double(), attention_loss(*exact, kind=kind, log=True), rtol=1e-5, atol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(log, (big, keys, v, target)))
    rows = attention_loss(big, keys, v, target, kind=kind, log_row_scale=_normalizer((big, keys, v)))
    assert rows.isfinite()


@pytest.mark.parametrize("form", FORMS)
def test_zero_residual(form):
    """At a perfect fit: loss 0, gradient 0, the Gauss-Newton Hessian, and a logarithm of -inf with gradient 0."""
    q, k, v, _ = inputs()
    target = torch_rescaled.attention(q, k, v).detach()
    loss = attention_loss(q, k, v, target, form=form)
    assert 0 <= loss.item() < 1e-24
    (grad,) = torch.autograd.grad(loss, v, create_graph=True)
    assert grad.abs().max() < 1e-10
    (product,) = torch.autograd.grad((grad * torch.ones_like(v)).sum(), v)
    assert product.abs().max() > 1e-3
    zero = torch.zeros_like(target)
    v0 = torch.zeros_like(v).requires_grad_()
    log = attention_loss(q, k, v0, zero, form=form, log=True)
    assert log == -math.inf
    assert all((g == 0).all() for g in torch.autograd.grad(log, (q, v0)))


def test_collapse():
    """What the notes of attention_loss warn of."""
    q, k, v, target = (t.detach() for t in inputs())
    shift = torch.zeros(2, 4, 7, 9, dtype=torch.float64) - 3.0  # a bias, the logarithm of every key's weight
    ratio = attention_loss(q, k, v, target, shift) / attention_loss(q, k, v, target)
    torch.testing.assert_close(ratio, torch.tensor(math.exp(-6.0), dtype=torch.float64))
    zero = torch.zeros_like(q).requires_grad_()
    loss = attention_loss(zero, k, v, target, kind="sinh")
    assert loss == 0 and (torch.autograd.grad(loss, zero)[0] == 0).all()
    assert attention_loss(q, k, v, target, kind="sinh") > 0


def test_transforms():
    q, k, v, target = (t.detach() for t in inputs(batch=(3, 2), kv_batch=(3, 2)))

    def loss(*x):
        return attention_loss(*x, kind="cosh", is_causal=True)

    each = torch.func.vmap(loss)(q, k, v, target)
    torch.testing.assert_close(each, torch.stack([loss(*(t[i] for t in (q, k, v, target))) for i in range(3)]))
    for form in FORMS:

        def small(x, form=form):
            return attention_loss(x, k[0, 0], v[0, 0], target[0, 0, :2], form=form)

        point = q[0, 0, :2]

        def dense(x, form=form):
            return definition(x, k[:1, 0], v[:1, 0], target[0, 0, :2], kind="exp", form=form).sum()

        torch.testing.assert_close(torch.func.hessian(small)(point), torch.func.hessian(dense)(point))
        torch.testing.assert_close(torch.func.jacrev(torch.func.jacfwd(small))(point), torch.func.hessian(dense)(point))


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")  # torch.export's own
@pytest.mark.parametrize("form", FORMS)
def test_compile_export_script(form, tmp_path):
    x = [t.detach().float().requires_grad_() for t in inputs()]

    def loss(q, k, v, target):
        return attention_loss(q, k, v, target, kind="cosh", form=form, reduction="mean")

    eager = loss(*x)
    grads = torch.autograd.grad(eager, x)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)(*x)
    torch.testing.assert_close(compiled, eager)
    for a, b in zip(torch.autograd.grad(compiled, x), grads, strict=True):
        torch.testing.assert_close(a, b)
    module = torch_rescaled.nn.AttentionLoss(kind="cosh", form=form, reduction="mean")
    torch.jit.save(torch.jit.script(module), tmp_path / "loss.pt")
    scripted = torch.jit.load(tmp_path / "loss.pt")(*x)
    assert torch.equal(scripted, eager)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(scripted, x), grads, strict=True))
    exported = torch.export.export(module, tuple(x)).run_decompositions()
    assert torch.equal(exported.module()(*x), eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_autocast(dtype):
    x = inputs(torch.float32)
    with torch.autocast("cpu", dtype):
        loss = attention_loss(*x, form="normalized", reduction="mean")
    low = [t.detach().to(dtype).requires_grad_() for t in x[:3]]
    explicit = attention_loss(*low, x[3], form="normalized", reduction="mean")
    assert loss.dtype == torch.float32 and torch.equal(loss, explicit)
    ours, expected = torch.autograd.grad(loss, x[:3]), torch.autograd.grad(explicit, low)
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.float())


def test_module_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="AttentionLoss: expected form 'rescaled' or 'normalized', got 'plain'"):
        torch_rescaled.nn.AttentionLoss(form="plain")


MESSAGES = {
    "expected form 'rescaled' or 'normalized', got 'plain'": (ValueError, {"form": "plain"}),
    "expected reduction 'none', 'sum' or 'mean', got 'max'": (ValueError, {"reduction": "max"}),
    "expected kind 'exp', 'cosh', 'sinh' or 'signed', got 'tanh'": (ValueError, {"kind": "tanh"}),
    "expected target that broadcasts to [2, 4, 7, 5], got [2, 4, 8, 5]": (ValueError, {"target": torch.zeros(2, 4, 8, 5)}),
    "expected target that broadcasts to [2, 4, 7, 5], got [1, 2, 4, 7, 5]": (ValueError, {"target": torch.zeros(1, 2, 4, 7, 5)}),
    "expected log_row_scale that broadcasts to [2, 4, 7], got [6]": (ValueError, {"log_row_scale": torch.zeros(6)}),
    "expected target of query's dtype Float, got Double": (TypeError, {"target": torch.zeros(5, dtype=torch.float64)}),
    "expected key of shape [2, 4, M, 6] to match query's head size 6, got [2, 4, 9, 5]": (
        ValueError,
        {"key": torch.zeros(2, 4, 9, 5)},
    ),
    "expected target on query's device cpu, got meta": (ValueError, {"target": torch.zeros(5, device="meta")}),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input(message, device):
    error, wrong = MESSAGES[message]
    q, k, v, target = (t.detach().float() for t in inputs())
    arguments = {"query": q, "key": k, "value": v, "target": target} | wrong
    if device == "meta":
        if "meta" in message:
            return
        arguments = {name: t.to(device) if isinstance(t, torch.Tensor) else t for name, t in arguments.items()}
    with pytest.raises(error) as caught:
        attention_loss(**arguments)
    assert f"torch_rescaled::attention_loss: {message}" in str(caught.value)


def test_float16_needs_a_row_scale():
    x = inputs(torch.float16)
    with pytest.raises(ValueError, match=r"attention_loss: expected log_row_scale \(or log=True\) with float16 .* ends at 65504"):
        attention_loss(*x)
    assert attention_loss(*x, log_row_scale=_normalizer(x)).isfinite()
    assert attention_loss(*x, log=True).isfinite() and attention_loss(*x, form="normalized").isfinite()
