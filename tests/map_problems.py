# SPDX-License-Identifier: BSD-3-Clause
"""Planted attention maps and layers, and their losses written plainly."""

import torch

PHI = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh, "signed": torch.sinh}
F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=F64).to(dtype)


def planted(kind="exp", form="normalized", n1=60, n2=50, d1=4, d2=5, *, batch=(), samples=(), noise=0.0, mask=None, causal=False):
    """A1, X, A2, B, with B the map of X; sums of sinh away from their pole."""
    A1 = 0.7 * randn(*batch, *samples, n1, d1) + 0.4
    A2 = 0.7 * randn(*batch, *samples, n2, d2, seed=1) + 0.4
    X = 0.5 * randn(*batch, d1, d2, seed=2) + (0.4 if kind == "sinh" else 0)
    z = A1 @ X.reshape(*batch, *(1,) * len(samples), d1, d2) @ A2.mT
    u = PHI[kind](z)
    taken = torch.ones(n1, n2, dtype=torch.bool)
    if causal:
        taken = taken.tril()
    if mask is not None:
        taken = taken & mask
    u = u.where(taken, 0.0)
    B = u if form == "plain" else u / u.sum(-1, keepdim=True).where(taken.any(-1, keepdim=True), 1.0)
    return A1, X, A2, B * (1 + noise * randn(*B.shape, seed=3))


def attention(A1, X, A2, A3, Y, kind="exp", mask=None):
    z = A1 @ X @ A2.mT
    if mask is not None:
        z = z.masked_fill(~mask, -torch.inf if kind == "exp" else 0.0)
    u = PHI[kind](z)
    total = (torch.cosh(z) if kind == "signed" else u).sum(-1, keepdim=True)
    return u @ A3 @ Y, total


def attention_loss(A1, X, A2, A3, Y, B, kind="exp", form="normalized"):
    output, total = attention(A1, X, A2, A3, Y, kind)
    return (output / total - B if form == "normalized" else output - total * B).square().sum() / 2


def planted_attention(kind="exp", n=60, d=4, dv=3, *, noise=0.0, seed=5):
    A1, A2, A3 = randn(n, d, seed=seed), randn(n - 10, d, seed=seed + 1), randn(n - 10, d, seed=seed + 2)
    if kind == "sinh":
        A1, A2 = 0.7 * A1 + 0.5, 0.7 * A2 + 0.5
    X, Y = 0.4 * randn(d, d, seed=seed + 3) + (0.3 if kind == "sinh" else 0), randn(d, dv, seed=seed + 4)
    output, total = attention(A1, X, A2, A3, Y, kind)
    B = output / total
    return A1, X, A2, A3, Y, B + noise * B.std() * randn(*B.shape, seed=seed + 5)


def distance(kind, found, truth):
    """Of X, relative; -X is as good for cosh."""
    signs = (1, -1) if kind == "cosh" else (1,)
    return min(float((found - s * truth).norm() / truth.norm()) for s in signs)
