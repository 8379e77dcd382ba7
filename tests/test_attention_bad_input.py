# SPDX-License-Identifier: BSD-3-Clause
"""Bad input: the error says the operator, the argument, what was expected and what came; the same on CPU and meta."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.attention.flex_attention import create_block_mask

import torch_rescaled
from torch_rescaled import attention, attention_with_normalizer

OPS = torch.ops.torch_rescaled
FUNCTIONS = [attention, attention_with_normalizer]
NESTED = (
    "to be a dense torch.Tensor, got a nested one; packed variable lengths do not exist yet, padding with a boolean attn_mask does"
)


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
    "dropout nan": ((Q, K, V, None, float("nan")), {}, ValueError, "expected dropout_p in [0, 1), got nan"),
    "dropout negative": ((Q, K, V, None, -0.1), {}, ValueError, "expected dropout_p in [0, 1), got -0.1"),
    "many dimensions": ((t(*[2] * 9, 1, 1),) * 3, {}, NotImplementedError, "expected at most 8 leading dimensions larger than 1, got 9"),
    "many grouped": ((t(*[2] * 7, 4, 1, 1), *(t(*[2] * 8, 1, 1),) * 2), {"enable_gqa": True}, NotImplementedError,
                     "expected at most 8 leading dimensions larger than 1 (grouped heads count as two), got 9"),
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


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_limits_themselves_are_allowed(device):
    q = torch.randn(*[2] * 8, 1, 1, device=device)
    assert attention(q, q, q).shape == q.shape
    wide = torch.randn(*[2, 1] * 6, 1, 1, device=device)
    assert attention(wide, wide, wide).shape == wide.shape
    grouped, key = torch.randn(*[2] * 6, 4, 1, 1, device=device), torch.randn(*[2] * 7, 1, 1, device=device)
    assert attention(grouped, key, key, enable_gqa=True).shape == grouped.shape


@pytest.mark.parametrize("position", range(1, 4))
def test_mixed_devices(position):
    args = [Q, K, V, t(5, 10)]
    args[position] = args[position].to("meta")
    name = ("query", "key", "value", "attn_mask")[position]
    with pytest.raises(ValueError, match=f"expected {name} on query's device cpu, got meta"):
        attention(*args)


def test_devices_without_kernels():
    with torch._subclasses.FakeTensorMode():
        q = torch.empty(2, 4, 8, device="xpu:0")
        for op in ("attention", "attention_with_normalizer"):
            text = r"expected tensors on the CPU or CUDA \(or meta\), got query on xpu:0; kernels for this device do not exist yet"
            with pytest.raises(NotImplementedError, match=rf"::{op}: {text}"):
                getattr(OPS, op)(q, q, q)
        text = r"torch_rescaled.backend: expected a tensor on the CPU or CUDA \(or meta\), got one on xpu:0"
        with pytest.raises(NotImplementedError, match=text):
            torch_rescaled.backend(q)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("position", range(4))
def test_nested_tensors(layout, position):
    args = [t(2, 5, 4), t(2, 5, 4), t(2, 5, 4), t(2, 5, 5)]
    args[position] = torch.nested.nested_tensor([t(3, 4), t(5, 4)], layout=layout)
    name = ("query", "key", "value", "attn_mask")[position]
    for op in ("attention", "attention_with_normalizer"):
        for call in (getattr(torch_rescaled, op), getattr(OPS, op)):
            with pytest.raises(NotImplementedError, match=f"torch_rescaled::{op}: expected {name} {NESTED}"):
                call(*args)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_sliding_windows(function):
    window = create_block_mask(lambda b, h, i, j: (i - j).abs() <= 2, None, None, 5, 10, device="cpu")
    text = f"torch_rescaled::{function.__name__}: expected attn_mask to be a torch.Tensor, got a BlockMask; sliding windows"
    with pytest.raises(NotImplementedError, match=f"{text} .* do not exist yet, a boolean attn_mask .* does"):
        function(Q, K, V, window)


def test_sparse_tensors():
    with pytest.raises(ValueError, match=r"expected dense \(strided\) tensors, got key with layout Sparse"):
        attention(t(5, 6), t(7, 6).to_sparse(), t(7, 6))


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("position", range(4))
def test_tensor_subclasses(position, function):
    args = [Q, K, V, t(5, 10)]
    args[position] = args[position].as_subclass(Subclass)
    name = ("query", "key", "value", "attn_mask")[position]
    with pytest.raises(
        TypeError, match=f"torch_rescaled::{function.__name__}: expected {name} to be a plain torch.Tensor, got Subclass"
    ):
        function(*args)


def test_causal_bias_is_recognized():
    q, k = torch.randn(2, 5, 4), torch.randn(2, 7, 4)
    expected = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attention(q, k, k, causal_upper_left(5, 7)), expected(q, k, k, is_causal=True))
    torch.testing.assert_close(attention(q, k, k, causal_lower_right(5, 7)), expected(q, k, k, causal_lower_right(5, 7)))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("variant", [causal_upper_left, causal_lower_right])
def test_causal_bias_of_wrong_lengths(variant, function):
    text = f"torch_rescaled::{function.__name__}: expected attn_mask, a CausalBias, of lengths [5, 10], got [5, 9]"
    with pytest.raises(ValueError, match=re.escape(text)):
        function(Q, K, V, variant(5, 9))


@pytest.mark.filterwarnings("ignore:Lower right causal bias will produce NaNs")  # not here
def test_causal_bias_with_is_causal():
    """Both hold: is_causal counts from the top left, and is the narrower one where there are more keys than queries."""
    q, k = torch.randn(2, 7, 4), torch.randn(2, 5, 4)
    lower_right = torch.ones(7, 5, dtype=torch.bool).tril(-2)
    for bias, mask in ((causal_upper_left(7, 5), None), (causal_lower_right(7, 5), lower_right)):
        result, expected = attention(q, k, k, bias, is_causal=True), attention(q, k, k, mask, is_causal=True)
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert not attention(q, k, k, causal_lower_right(7, 5))[:, :2].any()
    torch.testing.assert_close(attention(k, q, q, causal_lower_right(5, 7), is_causal=True), attention(k, q, q, is_causal=True))


@pytest.mark.parametrize("variant", [causal_upper_left, causal_lower_right])
def test_causal_bias_compiles(variant):
    q, k = torch.randn(2, 5, 4), torch.randn(2, 7, 4)

    def function(q, k, bias):
        return attention(q, k, k, bias)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, variant(5, 7)), function(q, k, variant(5, 7)))
    with pytest.raises(ValueError, match=re.escape("of lengths [5, 7], got [5, 9]")):
        torch.compile(function, backend="aot_eager")(q, k, variant(5, 9))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_primitives_check_their_contract(device):
    ops = OPS
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


SAVED = {
    "leading": ("output", lambda s: s[:1], ValueError, "output of shape [2, 5, 3], got [1, 5, 3]"),
    "wider": ("output", lambda s: s.expand(4, 2, 5, 3), ValueError, "output of shape [2, 5, 3], got [4, 2, 5, 3]"),
    "value size": ("output", lambda s: s[..., :2], ValueError, "output of shape [2, 5, 3], got [2, 5, 2]"),
    "rows": ("output", lambda s: s[:, :4], ValueError, "output of shape [2, 5, 3], got [2, 4, 3]"),
    "dtype": ("output", lambda s: s.double(), TypeError, "output of dtype Float, got Double"),
    "balance leading": ("balance", lambda s: s[:1], ValueError, "balance of shape [2, 5], got [1, 5]"),
    "balance dtype": ("balance", lambda s: s.half(), TypeError, "balance of dtype Float, got Half"),
    "log rows": ("log_normalizer", lambda s: s[:, :4], ValueError, "log_normalizer of shape [2, 5], got [2, 4]"),
    "log dtype": ("log_normalizer", lambda s: s.long(), TypeError, "log_normalizer of dtype Float, got Long"),
    "output device": ("output", lambda s: other_device(s), ValueError, "output on query's device {here}, got {other}"),
    "balance device": ("balance", lambda s: other_device(s), ValueError, "balance on query's device {here}, got {other}"),
    "log device": ("log_normalizer", lambda s: other_device(s), ValueError, "log_normalizer on query's device {here}, got {other}"),
}  # fmt: skip


def other_device(tensor):
    return torch.empty_like(tensor, device="meta" if tensor.device.type == "cpu" else "cpu")


def call_with(kernel, op, *args):
    """The kernel of one device, whatever the devices of the arguments make the dispatcher prefer."""
    return getattr(OPS, op).default.redispatch(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, kernel)), *args)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", SAVED)
def test_saved_outputs_are_checked(case, device):
    argument, change, error, text = SAVED[case]
    q, k, v = (x.to(device) for x in (t(2, 5, 4), t(1, 7, 4), t(1, 7, 3)))
    point, settings = (q, k, v, None, None, None), (0.0, False, None, "exp")
    saved = dict(zip(("output", "balance", "log_normalizer"), OPS._attention_forward(*point, *settings), strict=True))
    saved[argument] = change(saved[argument])
    text = text.format(here=device, other="meta" if device == "cpu" else "cpu")
    kernel = "CPU" if device == "cpu" else "Meta"
    for op, before, after in (
        ("_attention_backward", (None,) * 3, ([True] * 4,)),
        ("_attention_jvp", (None,) * 4, ()),
        ("_attention_double_backward", (None,) * 7, ([True] * 7,)),
    ):
        with pytest.raises(error, match=re.escape(f"torch_rescaled::{op}: expected {text}")):
            call_with(kernel, op, *before, *point, *saved.values(), *settings, *after)


@pytest.mark.parametrize("position", range(1, 6))
def test_devices_of_a_point(position):
    point = [t(2, 5, 4), t(2, 7, 4), t(2, 7, 3), t(2, 5, 7), t(2, 5, 7).bool(), torch.zeros(2, dtype=torch.int64)]
    point[position] = other_device(point[position])
    name = ("query", "key", "value", "bias", "mask", "dropout_seed")[position]
    for kernel in ("CPU", "Meta"):
        with pytest.raises(ValueError, match=f"_attention_forward: expected {name} on query's device cpu, got meta"):
            call_with(kernel, "_attention_forward", *point, 0.5, False, None, "exp")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_many_leading_dimensions_of_a_primitive(device):
    q = torch.zeros(*[2] * 9, 1, 1, device=device)
    with pytest.raises(NotImplementedError, match="_attention_forward: expected at most 8 leading dimensions larger than 1, got 9"):
        OPS._attention_forward(q, q, q, None, None, None, 0.0, False, None, "exp")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_dropout_mask_checks_its_arguments(device):
    seed = torch.zeros(2, dtype=torch.int64, device=device)
    for args, error, text in (
        ((seed.float(), 5, 7, 0.5), TypeError, "expected dropout_seed of dtype int64, got Float"),
        ((seed, 5, 7, 1.0), ValueError, "expected dropout_p in [0, 1), got 1"),
        ((seed, 5, 7, -0.5), ValueError, "expected dropout_p in [0, 1), got -0.5"),
        ((seed, 5, 7, float("nan")), ValueError, "expected dropout_p in [0, 1), got nan"),
        ((seed, -1, 7, 0.5), ValueError, "expected queries and keys of at least 0, got -1 and 7"),
    ):
        with pytest.raises(error, match=re.escape(f"torch_rescaled::_attention_dropout_mask: {text}")):
            OPS._attention_dropout_mask(*args)
    assert OPS._attention_dropout_mask(seed, 5, 7, 0.5).shape == (2, 5, 7)


def test_unknown_instruction_set():
    result = subprocess.run(
        [sys.executable, "-c", "import torch_rescaled"],
        env=os.environ | {"RESCALED_CPU_ISA": "avx"}, capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert result.returncode == 1
    names = "baseline, avx2, avx512, avx512_bf16 or amx_bf16"
    text = f"torch_rescaled: expected the environment variable RESCALED_CPU_ISA to be {names}, got avx"
    assert result.stderr.rstrip().splitlines()[-1] == f"ValueError: {text}"


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
