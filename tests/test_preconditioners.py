# SPDX-License-Identifier: BSD-3-Clause
"""Factors of the Kronecker preconditioner against those of a known curvature."""

import pytest
import torch

from torch_rescaled.optim._cg import conjugate_gradients
from torch_rescaled.optim._preconditioners import Kronecker, random_signs


def spd(n, generator, condition):
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return q * torch.logspace(0, -condition, n, dtype=torch.float64) @ q.T


@pytest.mark.parametrize("blocks", [(0, 1), (0, 3), (1, 2)])
def test_kronecker_factors_come_from_products_and_precondition(blocks):
    """Of a matrix whose curvature is a Kronecker product, block by block: the factors, and far fewer iterations than without."""
    g = torch.Generator().manual_seed(0)
    axis, count = blocks
    p = torch.zeros(12, 20, dtype=torch.float64)
    part = [12, 20]
    part[axis] //= count
    L, R = (torch.stack([spd(n, g, 2.0) for _ in range(count)]) for n in part)

    def product(tensors):
        return [torch.cat([a @ x @ b for x, a, b in zip(t.chunk(count, axis), L, R, strict=True)], axis) for t in tensors]

    kronecker, state = Kronecker(), {}
    state.update(kronecker.state(p, blocks))
    sums = {name: torch.zeros_like(t) for name, t in state.items()}
    steps = 3000
    for step in range(steps):
        signs = random_signs([p], step)
        kronecker.update([state], [blocks], signs, product(signs))
        for name, t in state.items():
            sums[name] += t / steps
    traces = [torch.stack([m.trace() for m in side])[:, None, None] for side in (L, R)]
    torch.testing.assert_close(sums["rows"], traces[1] * L, rtol=0, atol=0.05 * (traces[1] * L).max().item())
    torch.testing.assert_close(sums["columns"], traces[0] * R, rtol=0, atol=0.05 * (traces[0] * R).max().item())
    torch.testing.assert_close(sums["trace"], (traces[0] * traces[1]).flatten(), rtol=0.05, atol=0)

    right = [torch.randn(12, 20, generator=g, dtype=torch.float64)]
    inverse = kronecker.inverse([state], [blocks], steps, 1e-6)

    def model_after(precondition):
        return conjugate_gradients(product, right, None, precondition, 15, 0.0)[-1].model

    best = conjugate_gradients(product, right, None, inverse, 500, 0.0)[-1].model
    assert best - model_after(inverse) > 0.2 * (best - model_after(lambda r: r))  # both negative: a fifth of what is left
