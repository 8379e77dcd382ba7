# SPDX-License-Identifier: BSD-3-Clause
"""Masks by log weights, rows without keys, scores so large that one key takes all."""

import math

import pytest
import torch
from helpers import DTYPES, KINDS, dtype_name

from torch_rescaled import attention, attention_with_normalizer

EVERY_KIND = [*KINDS, "signed"]
pytestmark = pytest.mark.usefixtures("on_device")


def qkv(n=11, m=14, d=6, dv=5, batch=(2, 3), kv_batch=None, dtype=torch.float64, shift=0.0):
    kv_batch = batch if kv_batch is None else kv_batch
    shapes = ((*batch, n, d), (*kv_batch, m, d), (*kv_batch, m, dv))
    return [(torch.randn(s, dtype=torch.float64) + shift).to(dtype) for s in shapes]


def everything(f, x):
    """Outputs, their gradients along random cotangents, the gradients' gradients along others, JVP, forward over reverse."""
    x = [t.detach().requires_grad_() for t in x]
    out = f(*x)
    generator = torch.Generator().manual_seed(3)

    def weights(tensors):
        return [torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu").to(t) for t in tensors]

    g = [t.requires_grad_() for t in weights(out)]
    first = torch.autograd.grad(out, x, g, create_graph=True)
    along = weights(first)
    second = torch.autograd.grad(first, [*g, *x], along, allow_unused=True, materialize_grads=True)
    point, cotangents = tuple(t.detach() for t in x), tuple(t.detach() for t in g)
    jvp = torch.func.jvp(f, point, tuple(along))[1]
    over = torch.func.jvp(lambda *y: torch.func.vjp(f, *y)[1](cotangents), point, tuple(along))[1]
    return {"outputs": out, "backward": first, "double backward": second, "jvp": jvp, "forward over reverse": over}


def core(kind, attn_mask=None, **settings):
    return lambda *x: attention_with_normalizer(*x[:3], *(x[3:] or [attn_mask]), kind=kind, **settings)


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("low", ["-1e4", "min", "-inf"])
@pytest.mark.parametrize("how", ["matrix", "keys", "causal", "grouped"])
def test_large_negative_log_weights_mask(kind, dtype, low, how):
    """Bit for bit what the boolean mask gives: -1e4 and less underflow to a weight of 0."""
    x = qkv(batch=(2, 4), kv_batch=(2, 2), dtype=dtype) if how == "grouped" else qkv(dtype=dtype)
    shape = {"matrix": (11, 14), "keys": (2, 1, 1, 14), "causal": (3, 11, 14), "grouped": (2, 4, 11, 14)}[how]
    mask = torch.rand(shape) > 0.4
    mask[..., 0] = True
    value = {"-1e4": -1e4, "min": torch.finfo(dtype).min, "-inf": -math.inf}[low]
    bias = torch.zeros(shape, dtype=dtype).masked_fill(~mask, value)
    settings = {"is_causal": how == "causal", "enable_gqa": how == "grouped"}
    if kind != "signed":  # attention_with_normalizer takes it for sinh
        ours, expected = (everything(core(kind, m, **settings), x) for m in (bias, mask))
        for name in expected:
            for a, b in zip(ours[name], expected[name], strict=True):
                assert torch.equal(a, b), name
    # The quotient of sinh has poles, and in float16 its derivatives overflow, alike.
    ours, expected = (everything(lambda *x, m=m: (attention(*x, m, kind=kind, **settings),), x) for m in (bias, mask))
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_row_of_equal_low_log_weights_is_an_unmasked_row(kind, dtype):
    x = qkv(dtype=dtype)
    bias = torch.zeros(11, 14, dtype=dtype)
    bias[4] = -1e4
    low = bias[4, 0].item()
    ours, expected = (everything(core(kind, m), x) for m in (bias, None))
    # The scores are rounded beside a log weight of 1e4.
    tolerance = 8 * max(1e4 * torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps, torch.finfo(dtype).eps)
    torch.testing.assert_close(ours["outputs"][2][..., 4], expected["outputs"][2][..., 4] + low, rtol=1e-6, atol=0)
    for name in expected:
        for i, (a, b) in enumerate(zip(ours[name], expected[name], strict=True)):
            if (name, i) != ("outputs", 2):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_row_of_the_lowest_log_weights(kind, dtype):
    """log2(e) times the lowest number overflows: a row without keys, except in float16, whose lowest is only -65504."""
    x = qkv(dtype=dtype)
    bias, mask = torch.zeros(11, 14, dtype=dtype), torch.ones(11, 14, dtype=torch.bool)
    bias[4], mask[4] = torch.finfo(dtype).min, False
    if dtype == torch.float16:
        output, balance, log_normalizer = core(kind, bias)(*x)
        expected = core(kind)(*x)
        torch.testing.assert_close(output, expected[0], rtol=0.02, atol=0.02)
        torch.testing.assert_close(balance, expected[1], rtol=0.02, atol=0.02)
        torch.testing.assert_close(log_normalizer[..., 4], expected[2][..., 4] - 65504, rtol=1e-6, atol=0)
        return
    ours, expected = (everything(core(kind, m), x) for m in (bias, mask))
    assert (ours["outputs"][2][..., 4] == -math.inf).all()
    for name in expected:
        for a, b in zip(ours[name], expected[name], strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("how", ["mask", "bias", "no keys"])
def test_rows_without_keys_are_zero_with_zero_derivatives(kind, dtype, how):
    m = 0 if how == "no keys" else 14
    x = qkv(m=m, dtype=dtype, shift=1.0)  # away from the pole of sinh
    mask = torch.ones(11, m, dtype=torch.bool)
    mask[4] = False
    if how == "bias":
        x.append(torch.randn(11, m).to(dtype).masked_fill(~mask, -math.inf))
    attn_mask = mask if how == "mask" else None
    rows = slice(None) if how == "no keys" else 4

    def normalized(*x):
        return (attention(*x[:3], *(x[3:] or [attn_mask]), kind=kind),)

    def of_rows(f):
        return lambda *x: tuple(t[..., rows] if t.dim() == 3 else t[..., rows, :] for t in f(*x))

    output, balance, log_normalizer = of_rows(core(kind, attn_mask))(*x)
    assert (output == 0).all() and (balance == 0).all() and (log_normalizer == -math.inf).all()
    assert (of_rows(normalized)(*x)[0] == 0).all()
    for f in (normalized, core(kind, attn_mask)):
        for name, tensors in everything(of_rows(f), x).items():
            assert name == "outputs" or all((t == 0).all() for t in tensors), name
        for name, tensors in everything(f, x).items():
            for t in tensors:
                assert (t.isfinite() | (t == -math.inf) if name == "outputs" else t.isfinite()).all(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("how", ["plain", "causal", "mask"])
def test_scores_of_size_10000(kind, dtype, how):
    """Finite derivatives of every order; where one key is far ahead, the output is its value (of sinh: with its score's sign)."""
    q, k, v = qkv(n=33, m=70, d=8, dtype=dtype)
    size = q.double() @ k.double().mT / math.sqrt(8)
    q = (q.double() * 1e4 / size.abs().max()).to(dtype)
    mask = torch.rand(33, 70) > 0.4 if how == "mask" else torch.ones(33, 70, dtype=torch.bool)
    mask[:, 0] = True
    f = core(kind, mask if how == "mask" else None, is_causal=how == "causal")
    shrink = 1e-3 if dtype == torch.float16 else 1.0  # it ends at 65504
    results = everything(lambda *x: tuple(t * shrink for t in f(*x)), [q, k, v])
    for name, tensors in results.items():
        assert all(t.isfinite().all() for t in tensors), name

    output, balance, log_normalizer = f(q, k, v)
    attended = mask.tril() if how == "causal" else mask
    s = (q.double() @ k.double().mT / math.sqrt(8)).masked_fill(~attended, 0.0)
    u = (s if kind == "exp" else s.abs()).masked_fill(~attended, -math.inf)
    top, at = u.max(-1)
    assert top.max() > 5e3
    ahead = top - u.masked_fill(torch.nn.functional.one_hot(at, 70).bool(), -math.inf).amax(-1) > 40
    assert ahead.float().mean() > 0.3
    sign = s.gather(-1, at.unsqueeze(-1)).squeeze(-1).sign() if kind == "sinh" else torch.ones_like(top)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    expected = sign.unsqueeze(-1) * v.double().gather(-2, at.unsqueeze(-1).expand(*at.shape, 5))
    # Output and balance of one key are one product with its weight, 1 but for the roundings of an exponential near 1.
    exact = max(4 * eps, 0 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps)
    torch.testing.assert_close(output.double()[ahead], expected[ahead], rtol=exact, atol=0)
    torch.testing.assert_close(balance.double()[ahead], sign[ahead], rtol=4 * eps, atol=0)
    normalizer = top - math.log(1 if kind == "exp" else 2)
    torch.testing.assert_close(log_normalizer.double()[ahead], normalizer[ahead], rtol=0, atol=2 * eps * 1e4)
