# SPDX-License-Identifier: BSD-3-Clause
"""What attention must equal, and what must hold exactly."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import KINDS, dtype_name

from torch_rescaled import attention, attention_with_normalizer

DOUBLE = torch.float64
pytestmark = pytest.mark.usefixtures("on_device")


def qkv(n=11, m=14, d=6, dv=5, batch=(2, 3), dtype=DOUBLE, scale=1.0):
    return (
        scale * torch.randn(*batch, n, d, dtype=dtype),
        torch.randn(*batch, m, d, dtype=dtype),
        torch.randn(*batch, m, dv, dtype=dtype),
    )


def with_derivatives(f, *x):
    """The output, the gradients of a nonlinear loss, and those of their squares."""
    x = [t.detach().requires_grad_() for t in x]
    out = f(*x)
    first = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), x)
    return [out, *first, *second]


def assert_equal(a, b, atol=1e-10):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "bias"])
def test_exp_is_scaled_dot_product_attention(mask, causal):
    x = qkv()
    attn_mask = {None: None, "bool": torch.rand(11, 14) > 0.3, "bias": torch.randn(3, 11, 14, dtype=DOUBLE)}[mask]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask[:, 0] = True
    causal_mask = torch.ones(11, 14, dtype=torch.bool).tril()

    def expected(q, k, v):
        if causal and attn_mask is not None:
            both = attn_mask & causal_mask if attn_mask.dtype == torch.bool else attn_mask.masked_fill(~causal_mask, -math.inf)
            return F.scaled_dot_product_attention(q, k, v, both)
        return F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=causal)

    ours = with_derivatives(lambda *t: attention(*t, attn_mask, is_causal=causal), *x)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_equal(ours, with_derivatives(expected, *x))


@pytest.mark.parametrize("kind", ["cosh", "signed"])
def test_two_sided_is_softmax_over_keys_of_both_signs(kind):
    bias = torch.randn(11, 14, dtype=DOUBLE).masked_fill(torch.rand(11, 14) < 0.3, -math.inf)
    bias[:, 0] = 0.0
    sign = 1 if kind == "cosh" else -1
    x = qkv()

    def expected(q, k, v):
        return F.scaled_dot_product_attention(q, torch.cat([k, -k], -2), torch.cat([v, sign * v], -2), torch.cat([bias, bias], -1))

    ours = with_derivatives(lambda *t: attention(*t, bias, kind=kind), *x)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_equal(ours, with_derivatives(expected, *x))


@pytest.mark.parametrize("kind", ["cosh", "signed"])
@pytest.mark.parametrize("mask", ["none", "bool", "causal", "bool, causal", "bias", "bias of keys, causal"])
@pytest.mark.parametrize("groups", [1, 3])
def test_two_sided_is_softmax_over_keys_of_both_signs_in_every_mode(kind, mask, groups):
    q, k, v = qkv()
    q = torch.randn(2, 3 * groups, 11, 6, dtype=DOUBLE)
    sign = 1 if kind == "cosh" else -1
    allowed = torch.rand(3 * groups, 11, 14) > 0.3 if "bool" in mask else torch.ones(11, 14, dtype=torch.bool)
    allowed[..., 0] = True
    bias = torch.randn((2, 1, 1, 14) if "keys" in mask else (3 * groups, 11, 14), dtype=DOUBLE) if "bias" in mask else None
    attended = allowed.tril() if "causal" in mask else allowed

    def expected(q, k, v, b=None):
        k, v = (t.repeat_interleave(groups, -3) for t in (k, v))
        weight = torch.zeros(11, 14, dtype=DOUBLE) if b is None else b
        weight = weight.masked_fill(~attended, -math.inf)
        s = q @ torch.cat([k, -k], -2).mT / math.sqrt(6) + torch.cat([weight, weight], -1)
        return s.softmax(-1) @ torch.cat([v, sign * v], -2)

    def ours(q, k, v, b=None):
        attn_mask = b if b is not None else allowed if "bool" in mask else None
        return attention(q, k, v, attn_mask, is_causal="causal" in mask, kind=kind, enable_gqa=True)

    x = [q, k, v, *([] if bias is None else [bias])]
    assert_equal(with_derivatives(ours, *x), with_derivatives(expected, *x))
    along = tuple(torch.randn_like(t) for t in x)
    assert_equal(*(torch.func.jvp(f, tuple(t.detach() for t in x), along) for f in (ours, expected)))


def test_sinh_is_output_over_balance():
    x = qkv(scale=3.0)
    output, balance, _ = attention_with_normalizer(*x, kind="sinh")
    torch.testing.assert_close(attention(*x, kind="sinh"), output / balance.unsqueeze(-1))
    s = x[0] @ x[1].mT / math.sqrt(6)
    expected = torch.sinh(s) @ x[2] / torch.sinh(s).sum(-1, keepdim=True)
    torch.testing.assert_close(attention(*x, kind="sinh"), expected, rtol=1e-8, atol=1e-8)


def test_balance():
    x = qkv(scale=4.0)
    for kind in ("exp", "cosh"):
        assert (attention_with_normalizer(*x, kind=kind)[1] == 1).all()
    balance = attention_with_normalizer(*x, kind="sinh")[1]
    assert (balance.abs() <= 1).all() and (balance < 0).any() and (balance > 0).any()


def test_signed_only_in_public_operators():
    x = qkv(batch=())
    torch.testing.assert_close(attention(*x, kind="signed"), attention_with_normalizer(*x, kind="sinh")[0])
    torch.testing.assert_close(attention_with_normalizer(*x, kind="signed"), attention_with_normalizer(*x, kind="sinh"))
    with pytest.raises(ValueError, match="kind 'exp', 'cosh' or 'sinh', got 'signed'"):
        torch.ops.torch_rescaled._attention_forward(*x, None, None, None, 0.0, False, None, "signed")


@pytest.mark.parametrize("kind", [*KINDS, "signed"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_nan_and_infinity_propagate_where_attended(kind, bad, dtype):
    def outputs(where, i, j):
        x = dict(zip("qkv", qkv(batch=(), dtype=dtype), strict=True))
        x[where][i, j] = bad
        x = [t.requires_grad_() for t in x.values()]
        out = attention_with_normalizer(*x, kind=kind)
        grads = torch.autograd.grad(out[0].float().sum(), x)
        return attention(*x, kind=kind), out, grads, x

    output, core, _, _ = outputs("v", 3, 2)
    assert not output[:, 2].isfinite().any() and not core[0][:, 2].isfinite().any()
    assert core[0][:, [0, 1, 3, 4]].isfinite().all() and core[2].isfinite().all()

    output, core, grads, _ = outputs("q", 5, 1)
    for t in (output, core[0], core[1], core[2], grads[0]):
        assert not t[5].isfinite().any()
    for t in (core[0], core[1], core[2], grads[0]):
        assert t[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]].isfinite().all()
    assert not grads[1].isfinite().any() and not grads[2].isfinite().any()

    output, core, grads, x = outputs("k", 4, 1)
    score = x[0].detach().float()[:, 1] * bad
    # A score of -inf is a weight of 0 of exp; every other infinite score is the whole of its row.
    hit = torch.ones(11, dtype=torch.bool) if kind != "exp" or math.isnan(bad) else score > 0
    assert hit.any()
    for t in (output, core[0], core[1], core[2]):
        assert not t[hit].isfinite().any()
        assert t[~hit].isfinite().all()
    assert not grads[0][hit].isfinite().any()
