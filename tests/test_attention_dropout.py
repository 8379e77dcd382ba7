# SPDX-License-Identifier: BSD-3-Clause
"""Dropout: a pure function of (seed, query, key), the same in every primitive."""

import math

import oracle
import pytest
import torch
from helpers import DTYPES, HALF, KINDS, Case, assert_as_accurate, dtype_name, largest, random_like, scores_of, units_of

OPS = torch.ops.torch_rescaled
pytestmark = pytest.mark.usefixtures("on_device")


def threefry(key, counter, rounds=13):
    """Threefry-2x32 in Python integers, from the paper's description."""
    mask = 0xFFFFFFFF
    keys = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x = [(counter[0] + keys[0]) & mask, (counter[1] + keys[1]) & mask]
    for r in range(rounds):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[r % 8]
        x[0] = (x[0] + x[1]) & mask
        x[1] = ((x[1] << rotation | x[1] >> (32 - rotation)) & mask) ^ x[0]
        if r % 4 == 3:
            s = r // 4 + 1
            x = [(x[0] + keys[s % 3]) & mask, (x[1] + keys[(s + 1) % 3] + s) & mask]
    return x[0], x[1]


def test_known_answers():
    """Random123's published vector for Threefry-2x32 (20 rounds) checks the description; 13 rounds then check the kernel."""
    assert threefry((0, 0), (0, 0), 20) == (0x6B200159, 0x99BA4EFE)
    assert threefry((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), 20) == (0xC4923A9C, 0x483DF7A0)
    seed, p = 0x0123456789ABCDEF, 0.3
    mask = OPS._attention_dropout_mask(torch.tensor(seed), 5, 6, p)
    for i in range(5):
        for j in range(6):
            word = threefry((seed & 0xFFFFFFFF, seed >> 32), (i, j))[0]
            assert bool(mask[i, j]) == (word >> 8 >= p * 2**24)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate(p):
    mask = OPS._attention_dropout_mask(torch.randint(2**62, (8,)), 200, 300, p)
    n = mask.numel()
    assert abs(mask.float().mean().item() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    matrices = mask.float().flatten(1)  # seeds, rows and columns are independent
    assert (torch.corrcoef(matrices) - torch.eye(8)).abs().max() < 5 / (n / 8) ** 0.5
    rows = mask[0].float()
    assert (torch.corrcoef(rows) - torch.eye(200)).abs().max() < 6 / 300**0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_primitive_uses_the_mask(kind, dtype):
    p, n, m, d = 0.4, 70, 90, 8
    q, k, v = (torch.randn(2, 2, rows, d, dtype=dtype) for rows in (n, m, m))
    seed = torch.randint(2**62, (2, 2))
    kept = OPS._attention_dropout_mask(seed, n, m, p) / (1 - p)
    point, settings = (None, None, seed), (p, True, None, kind)

    def ours(q, k, v):
        return OPS._attention_forward(q, k, v, *point, *settings)

    def dense(q, k, v):
        return oracle.core(q, k, v, causal=True, kind=kind, kept=kept.to(q.dtype))

    x = [t.double() for t in (q, k, v)]
    outputs = dense(*x)
    cotangents, tangents = ([torch.randn_like(t) for t in ts] for ts in (outputs, x))
    expected = oracle.derivatives(dense, x, cotangents, tangents)
    saved = ours(q, k, v)
    for a, b in zip(saved, expected["forward"], strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-4)
    g, t = [c.to(dtype) for c in cotangents], [c.to(dtype) for c in tangents]
    full = (q, k, v, *point)
    backward = OPS._attention_backward(*g, *full, *saved, *settings, [True, True, True, False])
    jvp = OPS._attention_jvp(*t, None, *full, *saved, *settings)
    second = OPS._attention_double_backward(*t, None, *g, *full, *saved, *settings, [True] * 6 + [False])
    for name, got in (("backward", backward[:3]), ("jvp", jvp), ("double backward", second[:6])):
        for a, b in zip(got, expected[name], strict=True):
            torch.testing.assert_close(a.double(), b, atol=2e-5 * b.abs().max().item() + 1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_with_bias_mask_and_groups(kind, dtype):
    """As accurate as without dropout; query heads [2, 2, group of 2] share keys."""
    p, n, m, d, dv = 0.4, 37, 70, 8, 5
    bias = torch.randn(2, 2, 1, n, m).masked_fill(torch.rand(2, 2, 1, n, m) < 0.1, -torch.inf)
    inputs = [torch.randn(2, 2, 2, n, d), torch.randn(2, 2, 1, m, d), torch.randn(2, 2, 1, m, dv), bias]
    inputs = [t.to(dtype) for t in inputs]
    mask = torch.rand(1, 2, 2, n, m) > 0.3
    mask[..., 5, :] = False
    seed = torch.randint(2**62, (2, 2, 2))
    kept = OPS._attention_dropout_mask(seed, n, m, p).double() / (1 - p)
    settings = (p, True, None, kind)

    def dense(*x):
        return oracle.core(*x, mask, causal=True, kind=kind, kept=kept.to(x[0].dtype))

    exact = [t.double() for t in inputs]
    shapes = dense(*exact)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    types = (dtype, statistics, statistics)
    g, t = [x.to(y) for x, y in zip(random_like(shapes), types, strict=True)], [x.to(dtype) for x in random_like(inputs)]
    wide = [[x.double() for x in ts] for ts in (g, t)]
    truth = oracle.derivatives(dense, exact, *wide)
    del truth["forward over reverse"]

    def in_dtype(compute):
        rounded = inputs
        if dtype == torch.float64:
            rounded = [x * (1 + torch.finfo(dtype).eps * torch.randn_like(x)) for x in inputs]
        return oracle.derivatives(lambda *x: dense(*(y.to(compute) for y in x)), rounded, *wide)

    saved = OPS._attention_forward(*inputs, mask, seed, *settings)
    full = (*inputs, mask, seed, *saved, *settings)
    ours = {
        "forward": saved,
        "backward": OPS._attention_backward(*g, *full, [True] * 4),
        "jvp": OPS._attention_jvp(*t, *full),
        "double backward": OPS._attention_double_backward(*t, *g, *full, [True] * 7),
    }
    case = Case(m=m, d=d, dv=dv)
    units = units_of(case, exact, wide[1], range(4), range(4), shapes[1].numel())
    normalizer = largest(scores_of(case, *exact[:2])) + largest(exact[3]) + math.log(case.m)
    assert_as_accurate(ours, in_dtype(dtype), truth, dtype, normalizer, units, in_dtype(torch.float32) if dtype in HALF else None)


def test_shared_seed_is_a_shared_mask():
    q, k, v = (torch.randn(3, 2, 20, 4) for _ in range(3))
    q, k, v = (t[:1].expand(3, 2, 20, 4) for t in (q, k, v))
    shared = OPS._attention_forward(q, k, v, None, None, torch.tensor([[5, 6]]), 0.5, False, None, "exp")[0]
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], shared[2])
    own = OPS._attention_forward(q, k, v, None, None, torch.arange(6).view(3, 2), 0.5, False, None, "exp")[0]
    assert not torch.equal(own[0], own[1])


def test_layout_does_not_change_the_mask():
    q, k, v = (torch.randn(2, 20, 3, 4) for _ in range(3))
    torch.manual_seed(1)
    a = torch.ops.torch_rescaled.attention(*(t.transpose(1, 2) for t in (q, k, v)), None, 0.5)
    torch.manual_seed(1)
    b = torch.ops.torch_rescaled.attention(*(t.transpose(1, 2).contiguous() for t in (q, k, v)), None, 0.5)
    torch.testing.assert_close(a, b)
