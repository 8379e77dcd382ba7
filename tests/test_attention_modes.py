# SPDX-License-Identifier: BSD-3-Clause
"""Autocast, inference mode, meta and fake tensors, checkpointing, threads, determinism, FLOP counting."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import KINDS
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from torch_rescaled import attention, attention_with_normalizer
from torch_rescaled.nn import RescaledAttention


def qkv(*batch, n=40, m=60, d=16, dtype=torch.float32):
    return [torch.randn(*batch, rows, d, dtype=dtype, requires_grad=True) for rows in (n, m, m)]


def everything(x, kind, causal=False, bias=None, dual=False, **options):
    """Outputs, gradients and double backward; in a dual level, tangents of the outputs and their gradients instead."""

    def f(*y):
        return attention_with_normalizer(*y, *([None] if bias is None else []), is_causal=causal, kind=kind, **options)

    leaves = x if bias is None else [*x, bias]
    if dual:
        duals = [forward_ad.make_dual(t, t.detach().flip(-1)) for t in leaves]
        out = [forward_ad.unpack_dual(t).tangent for t in f(*duals)]
        return [*out, *torch.autograd.grad([o.sin().sum() for o in out], leaves)]
    out = f(*leaves)
    first = torch.autograd.grad([o.sin().sum() for o in out], leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [*out, *first, *second]


def everything_and_tangents(*args, **options):
    results = []
    for dual in (False, True):
        torch.manual_seed(7)  # one dropout mask
        with forward_ad.dual_level():
            results += everything(*args, dual=dual, **options)
    return results


def assert_equal(a, b):
    for s, t in zip(a, b, strict=True):
        assert torch.equal(s, t)


def assert_independent_of_threads(f):
    results = []
    for threads in (1, 2, 4, 1):
        torch.set_num_threads(threads)
        results.append(f())
    for other in results[1:]:
        assert_equal(results[0], other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(1,), (5,)])
def test_thread_counts_and_repeats_are_bit_identical(kind, batch):
    x, bias = qkv(*batch, n=300, m=500), torch.randn(300, 500, requires_grad=True)
    assert_independent_of_threads(lambda: everything_and_tangents(x, kind, causal=True, bias=bias))


def shaped(query, keys, dtype=torch.float32):
    return [torch.randn(*s, 16, dtype=dtype, requires_grad=True) for s in (query, keys, keys)]


# name -> query, key and value, options
LAYOUTS = {
    "dropout": (lambda: shaped((2, 300), (2, 500)), dict(dropout_p=0.3)),
    "groups": (lambda: shaped((2, 6, 100), (2, 2, 400)), dict(enable_gqa=True)),
    "bfloat16": (lambda: shaped((3, 300), (3, 500), torch.bfloat16), {}),
    "broadcast keys": (lambda: shaped((5, 100), (1, 500)), {}),
    "broadcast query": (lambda: shaped((1, 300), (5, 100)), {}),
}


@pytest.mark.parametrize("kind", ["exp", "sinh"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_thread_counts_are_bit_identical_for(name, kind):
    inputs, options = LAYOUTS[name]
    x = inputs()
    assert_independent_of_threads(lambda: everything_and_tangents(x, kind, **options))


@pytest.mark.parametrize("dual", [False, True], ids=["reverse", "reverse over forward"])
def test_two_threads_at_once(dual):
    problems = [qkv(2, 3, n=64 + i, m=90 - i) for i in range(4)]
    # PyTorch has one dual level for all threads: the main thread holds it open.
    with forward_ad.dual_level(), ThreadPoolExecutor(2) as pool:
        expected = [everything(x, "cosh", dual=dual) for x in problems]
        for _ in range(5):
            for a, b in zip(pool.map(lambda x: everything(x, "cosh", dual=dual), problems), expected, strict=True):
                assert_equal(a, b)


def assert_one_mask_in_all_derivatives(x):
    """W is linear in V, and <g, J t> = <J^T g, t>: only where forward, backward and tangents drop the same weights."""
    out = attention(*x, dropout_p=0.5, kind="signed")
    g = torch.randn_like(out).requires_grad_()
    first = torch.autograd.grad(out, x, g, create_graph=True)
    along = [torch.randn_like(t) for t in first]
    (tangent,) = torch.autograd.grad(first, g, along)  # J t
    torch.testing.assert_close((first[2] * x[2]).sum(), (g * out).sum())
    torch.testing.assert_close((tangent * g).sum(), sum((a * b).sum() for a, b in zip(first, along, strict=True)))
    q, k, v = x
    dual = attention(q, k, forward_ad.make_dual(v, v.detach()), dropout_p=0.5, kind="signed")
    torch.testing.assert_close(*forward_ad.unpack_dual(dual))


def test_two_threads_at_once_with_dropout():
    problems = [qkv(2, 3, n=64 + i, m=90 - i, dtype=torch.float64) for i in range(4)]
    with forward_ad.dual_level(), ThreadPoolExecutor(2) as pool:
        list(pool.map(assert_one_mask_in_all_derivatives, problems * 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    q, k, v = qkv(2)
    mask = torch.randn(40, 60)
    with torch.autocast("cpu", dtype=dtype):
        output, balance, log_normalizer = attention_with_normalizer(q, k, v, mask, kind="sinh")
        public = attention(q, k, v, mask)
    assert output.dtype == public.dtype == dtype
    assert balance.dtype == log_normalizer.dtype == torch.float32
    expected = attention_with_normalizer(q.to(dtype), k.to(dtype), v.to(dtype), mask, kind="sinh")[0]
    assert torch.equal(output, expected)
    assert torch.autograd.grad(public.sum(), q)[0].dtype == torch.float32


def masks(name):
    return {
        "none": None,
        "boolean": torch.rand(40, 60) > 0.3,
        "floating": torch.randn(40, 60, requires_grad=True),
    }[name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["none", "boolean", "floating"])
def test_derivatives_under_autocast_are_those_of_casts(name, dtype):
    x, mask = qkv(2), masks(name)
    leaves = [*x, mask] if name == "floating" else x

    def derivatives(out):
        first = torch.autograd.grad(out.float().sin().sum(), leaves, create_graph=True)
        return [out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    with torch.autocast("cpu", dtype=dtype):
        autocast = attention(*x, mask, kind="signed")
    found = derivatives(autocast)
    assert_equal(found, derivatives(attention(*(t.to(dtype) for t in x), mask, kind="signed")))
    assert all(t.dtype == torch.float32 for t in found[1:])


@pytest.mark.parametrize("kind", ["exp", "signed"])
def test_layer_under_autocast_is_the_cast_layer(kind):
    layer = RescaledAttention(24, 4, kv_heads=2, kind=kind, is_causal=True)
    cast = copy.deepcopy(layer).bfloat16()
    x = torch.randn(2, 20, 24, requires_grad=True)
    mask = torch.rand(20, 20) > 0.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x, attn_mask=mask)
    expected = cast(x.bfloat16(), attn_mask=mask)
    assert torch.equal(out, expected)
    grads = torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])
    for a, b in zip(grads, torch.autograd.grad(expected.sin().sum(), [x, *cast.parameters()]), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


@pytest.mark.parametrize("kind", [*KINDS, "signed"])
def test_inference_mode_and_no_grad(kind):
    x, mask = qkv(2, 4), torch.rand(40, 60) > 0.3
    layer = RescaledAttention(16, 4, kv_heads=2, kind=kind)
    calls = {
        "attention": lambda: [attention(*x, mask, kind=kind)],
        "attention_with_normalizer": lambda: attention_with_normalizer(*x, mask, kind=kind),
        "layer": lambda: [layer(x[0][0])],
    }
    for call in calls.values():
        expected = [t.detach() for t in call()]
        with torch.inference_mode():
            out = call()
        assert_equal(out, expected)
        assert all(t.is_inference() for t in out)
        with torch.no_grad():
            out = call()
        assert_equal(out, expected)
        assert not any(t.requires_grad for t in out)


def test_meta_and_fake_tensors():
    x = [t.to("meta") for t in qkv(2, 3)]
    output, balance, log_normalizer = attention_with_normalizer(*x)
    assert output.shape == (2, 3, 40, 16) and balance.shape == log_normalizer.shape == (2, 3, 40)
    assert output.device.type == "meta"
    with torch._subclasses.FakeTensorMode():
        fake = [torch.empty(2, 4, 8, dtype=torch.bfloat16) for _ in range(3)]
        assert attention_with_normalizer(*fake)[1].dtype == torch.float32


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", ["exp", "signed"])
def test_checkpoint_replays_the_dropout_mask(kind, use_reentrant):
    x = qkv(2)

    def f(*x):
        return attention(*x, dropout_p=0.5, kind=kind).sin().sum()

    torch.manual_seed(3)
    expected = torch.autograd.grad(f(*x), x)
    torch.manual_seed(3)
    checkpoint(f, *x, use_reentrant=use_reentrant).backward()
    assert_equal([t.grad for t in x], expected)


def test_deterministic_mode_is_honored():
    x = qkv(2)
    expected = everything(x, "exp")
    torch.use_deterministic_algorithms(True)
    try:
        for a, b in zip(everything(x, "exp"), expected, strict=True):
            assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_flop_counter():
    x = qkv(2, 3, n=40, m=60, d=16)
    unit = 2 * 2 * 3 * 40 * 60 * 16

    def count(f):
        with FlopCounterMode(display=False) as counter:
            result = f()
        return counter.get_total_flops() / unit, result

    assert count(lambda: attention(*x))[0] == 2
    out = attention(*x)
    assert count(lambda: torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True))[0] == 5
    assert count(lambda: torch.autograd.grad(out, x[2], torch.ones_like(out), retain_graph=True))[0] == 3
    assert count(lambda: torch.func.jvp(attention, tuple(t.detach() for t in x), tuple(torch.ones_like(t) for t in x)))[0] == 6
    first = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    assert count(lambda: torch.autograd.grad(first, x, [torch.ones_like(t) for t in x]))[0] == 5 + 10
