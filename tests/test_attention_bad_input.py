# SPDX-License-Identifier: BSD-3-Clause
"""Bad input: the error says the operator, the argument, what was expected and what came; the same on CPU and meta."""

import re

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import torch_rescaled
from torch_rescaled import attention


def t(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


Q, K, V = t(2, 8, 5, 64), t(2, 8, 10, 64), t(2, 8, 10, 32)
CASES = {
    "head size": ((Q, t(2, 8, 10, 32), V), {}, ValueError, "expected key of shape [2, 8, M, 64] to match query's head size 64, got [2, 8, 10, 32]"),
    "value length": ((Q, K, t(2, 8, 9, 32)), {}, ValueError, "expected value of shape [2, 8, 10, Dv] to match key's length 10, got [2, 8, 9, 32]"),
    "rank": ((t(5), K, V), {}, ValueError, "expected query of at least 2 dimensions [*, length, size], got [5]"),
    "batch": ((Q, t(3, 8, 10, 64), V), {}, ValueError, "expected key with leading dimensions that broadcast to [2, 8], got [3, 8, 10, 64]"),
    "query dtype": ((Q.long(), K, V), {}, TypeError, "expected query of dtype float32, float64, bfloat16 or float16, got Long"),
    "key dtype": ((Q, K.double(), V), {}, TypeError, "expected key of query's dtype Float, got Double"),
    "value dtype": ((Q.half(), K.half(), V), {}, TypeError, "expected value of query's dtype Half, got Float"),
    "mask dtype": ((Q, K, V, t(5, 10).long()), {}, TypeError, "expected attn_mask of dtype bool, of query's dtype Float, or float32, got Long"),
    "mask too exact": ((Q, K, V, t(5, 10).double()), {}, TypeError, "expected attn_mask of dtype bool, of query's dtype Float, or float32, got Double"),
    "mask shape": ((Q, K, V, t(5, 11)), {}, ValueError, "expected attn_mask that broadcasts to [2, 8, 5, 10], got [5, 11]"),
    "mask batch": ((Q, K, V, t(3, 1, 5, 10)), {}, ValueError, "expected attn_mask with leading dimensions that broadcast to [2, 8], got [3, 1, 5, 10]"),
    "mask rank": ((Q, K, V, t(10)), {}, ValueError, "expected attn_mask of at least 2 dimensions [*, N, M], got [10]"),
    "heads": ((Q, t(2, 3, 10, 64), t(2, 3, 10, 32)), {"enable_gqa": True}, ValueError,
              "expected a number of query heads that is a multiple of key's 3 with enable_gqa, got 8"),
    "value heads": ((Q, t(2, 4, 10, 64), t(2, 2, 10, 32)), {"enable_gqa": True}, ValueError, "expected value with key's 4 heads, got [2, 2, 10, 32]"),
    "no heads": ((t(5, 64), t(10, 64), t(10, 32)), {"enable_gqa": True}, ValueError,
                 "expected query, key and value of at least 3 dimensions [*, heads, length, size] with enable_gqa, got [5, 64]"),
    "dropout 1": ((Q, K, V, None, 1.0), {}, ValueError, "expected dropout_p in [0, 1), got 1"),
    "dropout negative": ((Q, K, V, None, -0.1), {}, ValueError, "expected dropout_p in [0, 1), got -0.1"),
    "kind": ((Q, K, V), {"kind": "tanh"}, ValueError, "expected kind 'exp', 'cosh', 'sinh' or 'signed', got 'tanh'"),
}  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("op", ["attention", "attention_with_normalizer"])
@pytest.mark.parametrize("name", CASES)
def test_message(name, op, device):
    args, kwargs, error, text = CASES[name]
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises(error, match=re.escape(f"torch_rescaled::{op}: {text}")):
        getattr(torch.ops.torch_rescaled, op)(*args, **kwargs)


def test_mixed_devices():
    with pytest.raises(ValueError, match="expected key on query's device cpu, got meta"):
        attention(Q, K.to("meta"), V)
    with pytest.raises(ValueError, match="expected attn_mask on query's device cpu, got meta"):
        attention(Q, K, V, t(5, 10).to("meta"))


def test_devices_without_kernels():
    with torch._subclasses.FakeTensorMode():
        q = torch.empty(2, 4, 8, device="cuda:0")
        with pytest.raises(NotImplementedError, match=r"expected tensors on the CPU \(or meta\), got query on cuda:0"):
            torch.ops.torch_rescaled.attention(q, q, q)


def test_sparse_tensors():
    with pytest.raises(ValueError, match=r"expected dense \(strided\) tensors, got key with layout Sparse"):
        attention(t(5, 6), t(7, 6).to_sparse(), t(7, 6))


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("position", range(4))
def test_tensor_subclasses(position):
    args = [Q, K, V, t(5, 10)]
    args[position] = args[position].as_subclass(Subclass)
    name = ("query", "key", "value", "attn_mask")[position]
    with pytest.raises(TypeError, match=f"expected {name} to be a plain torch.Tensor, got Subclass"):
        attention(*args)


def test_causal_bias_is_recognized():
    q, k = torch.randn(2, 5, 4), torch.randn(2, 7, 4)
    expected = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attention(q, k, k, causal_upper_left(5, 7)), expected(q, k, k, is_causal=True))
    torch.testing.assert_close(attention(q, k, k, causal_lower_right(5, 7)), expected(q, k, k, causal_lower_right(5, 7)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_primitives_check_their_contract(device):
    ops = torch.ops.torch_rescaled
    q, k, seed = (x.to(device) for x in (t(2, 5, 4), t(2, 7, 4), torch.zeros(2, dtype=torch.int64)))
    settings = (0.0, False, None, "exp")
    with pytest.raises(ValueError, match="_attention_forward: expected key with query's 1 leading dimensions"):
        ops._attention_forward(q, k[0], k, None, None, None, *settings)
    with pytest.raises(ValueError, match=r"expected dropout_seed with dropout_p 0\.5, got none"):
        ops._attention_forward(q, k, k, None, None, None, 0.5, False, None, "exp")
    with pytest.raises(TypeError, match="expected dropout_seed of dtype int64"):
        ops._attention_forward(q, k, k, None, None, seed.float(), 0.5, False, None, "exp")
    saved = ops._attention_forward(q, k, k, None, None, None, *settings)
    with pytest.raises(ValueError, match=r"_attention_backward: expected grad_output of shape \[2, 5, 4\], got \[2, 5, 3\]"):
        ops._attention_backward(t(2, 5, 3).to(device), None, None, q, k, k, None, None, None, *saved, *settings, [True] * 4)
    with pytest.raises(ValueError, match=r"_attention_jvp: expected tangent_key of shape \[2, 7, 4\], got \[2, 5, 4\]"):
        ops._attention_jvp(None, q, None, None, q, k, k, None, None, None, *saved, *settings)


def test_too_many_leading_dimensions():
    q = torch.zeros(*[2] * 9, 1, 1)
    with pytest.raises(NotImplementedError, match="expected at most 8 leading dimensions larger than 1, got 9"):
        attention(q, q, q)


def test_layer():
    layer = torch_rescaled.nn.RescaledAttention
    for arguments, text in (
        ({"embed_dim": 10, "num_heads": 3}, "expected embed_dim divisible by num_heads, got 10 and 3"),
        ({"embed_dim": 12, "num_heads": 4, "kv_heads": 3}, "expected kv_heads to divide num_heads 4, got 3"),
        ({"embed_dim": 12, "num_heads": 4, "kind": "relu"}, "expected kind 'exp', 'cosh', 'sinh' or 'signed', got 'relu'"),
        ({"embed_dim": 12, "num_heads": 4, "dropout": 1.0}, "expected dropout in [0, 1), got 1.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            layer(**arguments)
