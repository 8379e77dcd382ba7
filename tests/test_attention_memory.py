# SPDX-License-Identifier: BSD-3-Clause
"""Memory is linear in the sequence length: the largest tensor and the peak of what is alive, seen by the profiler."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from torch_rescaled import attention

# Its first use in a process says so, whatever it is told (torch 2.11).
pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events at the end of each cycle:UserWarning")

N, D = 4096, 16
SQUARE = 4 * N * N  # bytes of one N x N float32 array


def peak_bytes(f):
    """Peak of the bytes allocated and not yet freed while f runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        f()
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def derivative(f, q, k, v, name):
    x = [t.clone().requires_grad_() for t in (q, k, v)]
    if name == "forward":
        return f(q, k, v)
    if name == "jvp":
        return torch.func.jvp(f, (q, k, v), (k, q, v))
    grads = torch.autograd.grad(f(*x).square().sum(), x, create_graph=name == "reverse over reverse")
    if name == "reverse over reverse":
        return torch.autograd.grad(sum(g.square().sum() for g in grads), x)
    if name == "forward over reverse":
        return torch.func.jvp(lambda *y: torch.func.grad(lambda *z: f(*z).square().sum(), (0, 1, 2))(*y), (q, k, v), (k, q, v))
    return grads


NAMES = ["forward", "backward", "jvp", "reverse over reverse", "forward over reverse"]


@pytest.mark.parametrize("kind", ["exp", "signed"])
@pytest.mark.parametrize("name", NAMES)
def test_linear_in_sequence_length(name, kind):
    q, k, v = (torch.randn(1, N, D) for _ in range(3))
    bytes_ = peak_bytes(lambda: derivative(lambda *x: attention(*x, is_causal=True, kind=kind), q, k, v, name))
    assert 0 < bytes_ < SQUARE / 4  # at 16 columns: 256 KB a tensor, at most 16 copies of dQ


def test_the_measurement_sees_square_arrays():
    q, k, v = (torch.randn(1, N, D) for _ in range(3))
    assert peak_bytes(lambda: torch.softmax(q @ k.mT, -1) @ v) > SQUARE


def test_grouped_and_broadcast_keys_are_not_copied():
    q, k = torch.randn(8, 16, 64, 32), torch.randn(1, 1, 4096, 32)
    copied = 8 * 16 * k.numel() * 4
    assert peak_bytes(lambda: attention(q, k, k)) < copied / 4


def test_bias_is_not_expanded():
    q, bias = torch.randn(16, 512, 16), torch.randn(1, 512, requires_grad=True)
    expanded = 4 * 16 * 512 * 512

    def run():
        torch.autograd.grad(attention(q, q, q, bias).square().sum(), bias)

    assert peak_bytes(run) < expanded / 2
