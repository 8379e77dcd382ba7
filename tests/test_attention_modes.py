# SPDX-License-Identifier: BSD-3-Clause
"""Autocast, inference mode, meta and fake tensors, checkpointing, threads, determinism, FLOP counting."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import KINDS
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from torch_rescaled import attention, attention_with_normalizer


def qkv(*batch, n=40, m=60, d=16, dtype=torch.float32):
    return [torch.randn(*batch, rows, d, dtype=dtype, requires_grad=True) for rows in (n, m, m)]


def everything(x, kind, causal=False, bias=None):
    out = attention_with_normalizer(*x, bias, is_causal=causal, kind=kind)
    leaves = x if bias is None else [*x, bias]
    first = torch.autograd.grad([o.sin().sum() for o in out], leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [*out, *first, *second]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(1,), (5,)])
def test_thread_counts_and_repeats_are_bit_identical(kind, batch):
    x, bias = qkv(*batch, n=300, m=500), torch.randn(300, 500, requires_grad=True)
    results = []
    for threads in (1, 2, 4, 1):
        torch.set_num_threads(threads)
        results.append(everything(x, kind, causal=True, bias=bias))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_two_threads_at_once():
    problems = [qkv(2, 3, n=64 + i, m=90 - i) for i in range(4)]
    expected = [everything(x, "cosh") for x in problems]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for a, b in zip(pool.map(lambda x: everything(x, "cosh"), problems), expected, strict=True):
                for s, t in zip(a, b, strict=True):
                    assert torch.equal(s, t)


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


def test_inference_mode_and_no_grad():
    x = qkv(2)
    expected = attention(*x).detach()
    with torch.inference_mode():
        assert torch.equal(attention(*x), expected)
    with torch.no_grad():
        out = attention(*x)
        assert torch.equal(out, expected) and not out.requires_grad


def test_meta_and_fake_tensors():
    x = [t.to("meta") for t in qkv(2, 3)]
    output, balance, log_normalizer = attention_with_normalizer(*x)
    assert output.shape == (2, 3, 40, 16) and balance.shape == log_normalizer.shape == (2, 3, 40)
    assert output.device.type == "meta"
    with torch._subclasses.FakeTensorMode():
        fake = [torch.empty(2, 4, 8, dtype=torch.bfloat16) for _ in range(3)]
        assert attention_with_normalizer(*fake)[1].dtype == torch.float32


def test_checkpoint_replays_the_dropout_mask():
    x = qkv(2)

    def f(*x):
        return attention(*x, dropout_p=0.5).sin().sum()

    torch.manual_seed(3)
    expected = torch.autograd.grad(f(*x), x)
    torch.manual_seed(3)
    for a, b in zip(torch.autograd.grad(checkpoint(f, *x, use_reentrant=False), x), expected, strict=True):
        assert torch.equal(a, b)


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
    assert count(lambda: torch.func.jvp(attention, tuple(t.detach() for t in x), tuple(torch.ones_like(t) for t in x)))[0] == 2 + 5
    first = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    assert count(lambda: torch.autograd.grad(first, x, [torch.ones_like(t) for t in x]))[0] == 5 + 10
