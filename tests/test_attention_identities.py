# SPDX-License-Identifier: BSD-3-Clause
"""What attention must equal, and what must hold exactly."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import KINDS

import torch_rescaled
from torch_rescaled import attention, attention_with_normalizer

DOUBLE = torch.float64


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


def test_sinh_is_output_over_balance():
    x = qkv(scale=3.0)
    output, balance, _ = attention_with_normalizer(*x, kind="sinh")
    torch.testing.assert_close(attention(*x, kind="sinh"), output / balance.unsqueeze(-1))
    s = x[0] @ x[1].mT / math.sqrt(6)
    expected = torch.sinh(s) @ x[2] / torch.sinh(s).sum(-1, keepdim=True)
    torch.testing.assert_close(attention(*x, kind="sinh"), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", [*KINDS, "signed"])
@pytest.mark.parametrize("low", [-1e4, torch.finfo(torch.float32).min, -math.inf])
def test_large_negative_log_weights_mask(kind, low):
    x = qkv()
    mask = torch.rand(11, 14) > 0.4
    mask[:, 0] = True
    bias = torch.zeros(11, 14, dtype=DOUBLE).masked_fill(~mask, low)
    assert_equal(
        with_derivatives(lambda *t: attention(*t, bias, kind=kind), *x),
        with_derivatives(lambda *t: attention(*t, mask, kind=kind), *x),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_size_10000_stay_finite(kind, dtype):
    q, k, v = qkv(n=33, m=70, d=8)
    q = q * 1e4 / (q @ k.mT / math.sqrt(8)).abs().max()
    x = [t.to(dtype).requires_grad_() for t in (q, k, v)]
    out = attention_with_normalizer(*x, kind=kind)
    assert out[2].max() > 5e3
    first = torch.autograd.grad([o.sum() for o in out], x, create_graph=True)
    second = torch.autograd.grad(sum(g.float().square().sum() for g in first), x)
    for t in (*out, *first, *second):
        assert t.isfinite().all()


@pytest.mark.parametrize("kind", [*KINDS, "signed"])
@pytest.mark.parametrize("how", ["mask", "bias", "no keys"])
def test_rows_without_keys_are_zero_with_zero_derivatives(kind, how):
    m = 0 if how == "no keys" else 14
    x = [t.requires_grad_() for t in qkv(m=m)]
    mask = torch.ones(11, m, dtype=torch.bool)
    mask[4] = False
    attn_mask = (
        None if how == "no keys" else mask if how == "mask" else torch.zeros(11, m, dtype=DOUBLE).masked_fill(~mask, -math.inf)
    )
    rows = slice(None) if how == "no keys" else 4
    out = attention(*x, attn_mask, kind=kind)
    core = attention_with_normalizer(*x, attn_mask, kind=kind)
    assert (out[..., rows, :] == 0).all() and (core[0][..., rows, :] == 0).all()
    assert (core[1][..., rows] == 0).all() and (core[2][..., rows] == -math.inf).all()
    first = torch.autograd.grad(out[..., rows, :].sum(), x, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), x, allow_unused=True, materialize_grads=True)
    for t in (*first, *second):
        assert (t == 0).all()
    everything = torch.autograd.grad(attention(*x, attn_mask, kind=kind).square().sum(), x, create_graph=True)
    for t in torch.autograd.grad(sum(g.square().sum() for g in everything), x, allow_unused=True, materialize_grads=True):
        assert t.isfinite().all()


def test_balance():
    x = qkv(scale=4.0)
    for kind in ("exp", "cosh"):
        assert (attention_with_normalizer(*x, kind=kind)[1] == 1).all()
    balance = attention_with_normalizer(*x, kind="sinh")[1]
    assert (balance.abs() <= 1).all() and (balance < 0).any() and (balance > 0).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_bit_identical_in_all_primitives(kind, dtype, causal):
    """With V, its tangent or the cotangent the identity, each primitive returns the weights a themselves."""
    ops = torch.ops.torch_rescaled
    n, m, d = 37, 53, 20
    q, k = 6 * torch.randn(n, d, dtype=dtype), torch.randn(m, d, dtype=dtype)
    v, bias = torch.eye(m, dtype=dtype), torch.randn(n, m, dtype=dtype)
    settings = (0.0, causal, None, kind)
    point = (q, k, v, bias, None, None)
    saved = ops._attention_forward(*point, *settings)
    by_jvp = ops._attention_jvp(None, None, torch.eye(m, dtype=dtype), None, *point, *saved, *settings)[0]
    cotangent = torch.eye(n, dtype=dtype)
    values = (q, k, torch.zeros(m, n, dtype=dtype), bias, None, None)
    saved_values = (torch.zeros(n, n, dtype=dtype), *saved[1:])
    by_backward = ops._attention_backward(cotangent, None, None, *values, *saved_values, *settings, [False, False, True, False])[
        2
    ].mT
    assert torch.equal(by_jvp, by_backward)
    # Along a tangent t of the bias, grad_value = (a (t - ld))^T with the ld that the JVP returns.
    tangent = torch.randn(n, m, dtype=dtype)
    tangent_normalizer = ops._attention_jvp(None, None, None, tangent, *point, *saved, *settings)[2]
    second = ops._attention_double_backward(
        None, None, None, tangent, cotangent, None, None, *values, *saved_values, *settings, [False] * 5 + [True, False]
    )[5].mT
    assert torch.equal(second, by_jvp * (tangent - tangent_normalizer.unsqueeze(-1)))
    relative = (saved[0] - by_jvp).abs().max() / by_jvp.abs().max()  # the forward divides by its own normalizer
    assert relative <= 300 * torch.finfo(dtype).eps


def test_signed_only_in_public_operators():
    x = qkv(batch=())
    torch.testing.assert_close(attention(*x, kind="signed"), attention_with_normalizer(*x, kind="sinh")[0])
    torch.testing.assert_close(attention_with_normalizer(*x, kind="signed"), attention_with_normalizer(*x, kind="sinh"))
    with pytest.raises(ValueError, match="kind 'exp', 'cosh' or 'sinh', got 'signed'"):
        torch.ops.torch_rescaled._attention_forward(*x, None, None, None, 0.0, False, None, "signed")


def test_nan_and_infinity_propagate_where_attended():
    for bad in (math.nan, math.inf):
        q, k, v = qkv(batch=(), dtype=torch.float32)
        v[3, 2] = bad
        assert not torch_rescaled.attention(q, k, v)[:, 2].isfinite().any()
        q[5, 1] = math.nan
        out = torch_rescaled.attention(q, k, v)
        assert out[5].isnan().all()
