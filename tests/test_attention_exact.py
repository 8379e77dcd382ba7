# SPDX-License-Identifier: BSD-3-Clause
"""What holds to the last bit: weights in all primitives, layouts."""

import oracle
import pytest
import torch
from helpers import KINDS, dtype_name
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_rescaled

OPS = torch.ops.torch_rescaled
pytestmark = pytest.mark.usefixtures("on_device")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_bit_identical_in_all_derivatives(kind, dtype, causal, device):
    """With V, its tangent or the cotangent the identity, each primitive returns the weights a themselves."""
    n, m, d = 37, 53, 20
    q, k = 6 * torch.randn(n, d, dtype=dtype), torch.randn(m, d, dtype=dtype)
    v, bias = torch.eye(m, dtype=dtype), torch.randn(n, m, dtype=dtype)
    settings = (0.0, causal, None, kind)
    point = (q, k, v, bias, None, None)
    saved = OPS._attention_forward(*point, *settings)
    by_jvp = OPS._attention_jvp(None, None, torch.eye(m, dtype=dtype), None, *point, *saved, *settings)[0]
    cotangent = torch.eye(n, dtype=dtype)
    values = (q, k, torch.zeros(m, n, dtype=dtype), bias, None, None)
    saved_values = (torch.zeros(n, n, dtype=dtype), *saved[1:])
    by_backward = OPS._attention_backward(cotangent, None, None, *values, *saved_values, *settings, [False, False, True, False])[
        2
    ].mT
    assert torch.equal(by_jvp, by_backward)
    # Along a tangent t of the bias, grad_value = (a (t - ld))^T with the ld that the JVP returns.
    tangent = torch.randn(n, m, dtype=dtype)
    tangent_normalizer = OPS._attention_jvp(None, None, None, tangent, *point, *saved, *settings)[2]
    second = OPS._attention_double_backward(
        None, None, None, tangent, cotangent, None, None, *values, *saved_values, *settings, [False] * 5 + [True, False]
    )[5].mT
    expected = by_jvp * (tangent - tangent_normalizer.unsqueeze(-1))
    if device == "cuda" and dtype == torch.float32:  # three TF32 products keep 22 bits of a weight, and of its tangent
        torch.testing.assert_close(second, expected, rtol=2**-20, atol=1e-30)
    else:
        assert torch.equal(second, expected)
    relative = (saved[0] - by_jvp).abs().max() / by_jvp.abs().max()  # the forward divides by its own normalizer
    assert relative <= 300 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize(
    ("n", "m", "d", "causal"),
    [(5, 3, 1, False), (37, 53, 21, True), (65, 131, 67, False), (49, 70, 257, False), (130, 97, 300, True)],
)
def test_scores_are_bit_identical_in_all_primitives(kind, dtype, n, m, d, causal):
    """One key is 0 and has log weight 0; the others weigh so little that the normalizer is 1: then a = e^b phi(s) everywhere."""
    q, k = 3 * torch.randn(n, d, dtype=dtype), torch.randn(m, d, dtype=dtype)
    k[0] = 0
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    low, high = (-90.0, -56.0) if dtype == torch.float64 else (-60.0, -36.0)
    bias = low + (high - low) * torch.rand(n, m, dtype=wide)
    bias[:, 0] = 0
    settings = (0.0, causal, None, kind)
    identity = torch.eye(m, dtype=dtype)
    point = (q, k, identity, bias, None, None)
    saved = OPS._attention_forward(*point, *settings)
    assert (saved[2] == 0).all(), "the test's premise: c = 1"
    attended = torch.ones(n, m, dtype=torch.bool).tril() if causal else torch.ones(n, m, dtype=torch.bool)
    weights = saved[0]
    assert torch.equal(weights[:, 1:] != 0, attended[:, 1:])

    by_jvp = OPS._attention_jvp(None, None, identity, None, *point, *saved, *settings)[0]
    assert torch.equal(by_jvp, weights)

    cotangent = torch.eye(n, dtype=dtype)
    values = (q, k, torch.zeros(m, n, dtype=dtype), bias, None, None)
    saved_values = (torch.zeros(n, n, dtype=dtype), *saved[1:])
    at = (*values, *saved_values, *settings)
    by_backward = OPS._attention_backward(cotangent, None, None, *at, [False, False, True, False])[2].mT
    assert torch.equal(by_backward, weights)

    # Along 1 in every other log weight, grad_value = a (1 - ld)^T, and ld is below the last bit of 1.
    tangent = torch.ones(n, m, dtype=wide)
    tangent[:, 0] = 0
    need = [False] * 5 + [True, False]
    second = OPS._attention_double_backward(None, None, None, tangent, cotangent, None, None, *at, need)[5].mT
    assert torch.equal(second[:, 1:], weights[:, 1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_layout_changes_no_bit(kind, dtype, layout):
    """Inputs, cotangents, tangents and what the forward saved, in every layout, against contiguous ones."""
    n, m, d, dv = 37, 70, 19, 9
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def new(*shape, dtype=dtype):
        return oracle.lay_out(torch.randn(shape, dtype=torch.float64).to(dtype), layout)

    def everything(q, k, v, bias, tq, tk, tv, tb, g, g_balance, g_normalizer, lay_out):
        point, settings = (q, k, v, bias, None, None), (0.0, True, None, kind)
        saved = tuple(lay_out(t) for t in OPS._attention_forward(*point, *settings))
        at = (*point, *saved, *settings)
        tangents, cotangents = (tq, tk, tv, tb), (g, g_balance, g_normalizer)
        return [
            *saved, *OPS._attention_forward_jvp(*tangents, *point, *settings),
            *OPS._attention_jvp(*tangents, *at), *OPS._attention_backward(*cotangents, *at, [True] * 4),
            *OPS._attention_double_backward(*tangents, *cotangents, *at, [True] * 7),
        ]  # fmt: skip

    x = [new(2, 2, n, d), new(2, 1, m, d), new(2, 1, m, dv), new(2, n, m).unsqueeze(0)]
    tensors = [*x, *(new(*t.shape) for t in x), new(2, 2, n, dv), new(2, 2, n, dtype=wide), new(2, 2, n, dtype=wide)]
    assert not any(t.is_contiguous() for t in tensors)
    saved_layout = "contiguous" if layout == "expanded" else layout
    ours = everything(*tensors, lambda t: oracle.lay_out(t, saved_layout))
    for a, b in zip(ours, everything(*(t.contiguous() for t in tensors), lambda t: t), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("moving", [(0, 1, 2, 3), (0,), (1,), (2,), (3,), ()], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
def test_forward_and_tangents_in_one_pass(kind, dtype, moving):
    """The same outputs as the forward, to the bit; the tangents as those of the JVP that knows the normalizer."""
    n, m, d, dv = 37, 200, 19, 9
    x = [torch.randn(s, dtype=torch.float64).to(dtype) for s in ((2, 2, n, d), (2, 1, m, d), (2, 1, m, dv), (1, 2, n, m))]
    mask = torch.rand(2, 1, n, m) > 0.2
    mask[0, 0, 5] = False  # a row without keys
    tangents = [torch.randn_like(t) if i in moving else None for i, t in enumerate(x)]
    point, settings = (*x, mask, torch.randint(2**62, (2, 2))), (0.25, True, None, kind)
    saved = OPS._attention_forward(*point, *settings)
    results = OPS._attention_forward_jvp(*tangents, *point, *settings)
    for got, expected in zip(results[:3], saved, strict=True):
        assert torch.equal(got, expected)
    for got, expected in zip(results[3:], OPS._attention_jvp(*tangents, *point, *saved, *settings), strict=True):
        eps = torch.finfo(expected.dtype).eps
        assert got.dtype == expected.dtype and got.isfinite().all()
        torch.testing.assert_close(got, expected, rtol=8 * eps, atol=32 * eps * (1 + expected.abs().max().item()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("causal", [False, True])
def test_one_more_query_changes_no_gradient_of_the_others(dtype, causal, device):
    """Of 256 queries the gradient is summed where it is returned, of 257 in a copy; both add up those of chunks of keys."""
    if device == "cuda":
        pytest.skip("how the CPU kernels sum it")
    n, d, heads = 256, 64, 3
    q, tq, g = (torch.randn(1, n + 1, heads, d, dtype=torch.float64).to(dtype).transpose(1, 2) for _ in range(3))
    k, v, tk, tv = (torch.randn(1, 1, n, d, dtype=torch.float64).to(dtype) for _ in range(4))  # one head: four chunks
    settings = (0.0, causal, None, "exp")

    def of(queries):
        x, moving = (q[:, :, :queries], k, v, None, None, None), (tq[:, :, :queries], tk, tv, None)
        saved = OPS._attention_forward(*x, *settings)
        cotangents, at = (g[:, :, :queries], None, None), (*x, *saved, *settings)
        first = OPS._attention_backward(*cotangents, *at, [True, False, False, False])[0]
        second = OPS._attention_double_backward(*moving, *cotangents, *at, [False] * 3 + [True] + [False] * 3)[3]
        return first, second

    for few, many in zip(of(n), of(n + 1), strict=True):
        assert few.any() and torch.equal(few, many[:, :, :n])


@pytest.mark.parametrize("features", ["none", "bias and mask", "causal", "dropout"])
@pytest.mark.parametrize("queries", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
def test_few_queries_are_the_first_of_many(dtype, kind, queries, features):
    """A few queries take kernels of their own, with keys cut into chunks: 1, or 3 of the 1585 keys."""
    n, d, dv = 30, 19, 9
    for m in (5, 1585):
        q, k, v, bias = (torch.randn(s, dtype=torch.float64).to(dtype) for s in ((2, 1, n, d), (2, 1, m, d), (2, 1, m, dv), (n, m)))
        mask = torch.rand(n, m) > 0.2
        mask[1] = False  # a row without keys
        mask[0, m // 2 :] = False  # the last chunk sees none
        has_masks, dropout_p = features == "bias and mask", 0.25 if features == "dropout" else 0.0
        seed = torch.randint(2**62, (2, 1)) if dropout_p else None

        few, many = (
            OPS._attention_forward(
                q[:, :, :rows], k, v, *((bias[None, None, :rows], mask[None, None, :rows]) if has_masks else (None, None)),
                seed, dropout_p, features == "causal", None, kind,
            )
            for rows in (queries, n)
        )  # fmt: skip
        for got, expected in zip(few, (t[:, :, :queries] for t in many), strict=True):
            eps = torch.finfo(expected.dtype).eps
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=8 * eps, atol=32 * eps)


@pytest.mark.parametrize("shared", [False, True], ids=["own keys", "grouped"])
@pytest.mark.parametrize("kind", ["exp", "sinh"])
def test_outputs_and_gradients_are_laid_out_as_their_inputs(kind, shared):
    """A layer's heads stay beside each other in memory: going back to [B, N, heads D] is a view, in every derivative."""
    B, N, heads, kv, D = 2, 9, 4, 2 if shared else 4, 8
    x = [torch.randn(B, N, h * D, dtype=torch.float64, requires_grad=True) for h in (heads, kv, kv)]
    q, k, v = (t.unflatten(-1, (-1, D)).transpose(1, 2) for t in x)

    def flat(t):
        return t.transpose(1, 2).view(B, N, -1)

    out = torch_rescaled.attention(q, k, v, kind=kind, enable_gqa=shared)
    dense = torch_rescaled.attention(*(t.contiguous() for t in (q, k, v)), kind=kind, enable_gqa=shared)
    torch.testing.assert_close(flat(out), dense.transpose(1, 2).reshape(B, N, -1), rtol=0, atol=0)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = torch_rescaled.attention(*leaves, kind=kind, enable_gqa=shared)
    first = torch.autograd.grad(out, leaves, torch.randn_like(out), create_graph=True)
    second = torch.autograd.grad(first, leaves, [torch.randn_like(g) for g in first])
    tangent = torch.func.jvp(
        lambda q: torch_rescaled.attention(q, k, v, kind=kind, enable_gqa=shared), (q,), (torch.randn_like(q),)
    )[1]
    turned = torch_rescaled.attention(q.contiguous(), k.contiguous(), v, kind=kind, enable_gqa=shared)
    for t in (out, *first, *second, tangent, turned):
        flat(t)

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(t) for t in leaves]
        out_fake = torch_rescaled.attention(*fake, kind=kind, enable_gqa=shared)
        first_fake = torch.autograd.grad(out_fake, fake, torch.ones_like(out_fake), create_graph=True)
        second_fake = torch.autograd.grad(first_fake, fake, [torch.ones_like(g) for g in first_fake])
    assert [t.stride() for t in (out, *first, *second)] == [t.stride() for t in (out_fake, *first_fake, *second_fake)]
