# SPDX-License-Identifier: BSD-3-Clause
"""Approximate inverses of a damped curvature, from its products with random signs alone.

For signs v, v ⊙ B v has the diagonal of B as its mean; and where a matrix's block of B is a Kronecker product L ⊗ R, so that a
direction V gives U = L V R, the means of U V^T and V^T U are tr(R) L and tr(L) R. Other blocks of B add noise of mean zero, so a
running mean over the steps is taken. One product a step serves all parameters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_rescaled.optim._cg import Tensors

__all__ = ["PRECONDITIONERS", "Blocks", "Diagonal", "Kronecker", "check_blocks", "random_signs"]

Blocks = tuple[int, int]  # a matrix is cut along this axis into so many parts, each with factors of its own
State = dict[str, Tensor]

_DECAY = 0.9
# Of the mean eigenvalue: what an estimate is trusted for.
_DIAGONAL_FLOOR, _KRONECKER_FLOOR = 0.1, 0.3
# A longer side's factor is the identity: its eigendecomposition would take longer than the products. So is that of a side whose
# entries would be means over fewer numbers than this.
_LONGEST_SIDE, _LEAST_MEAN = 2048, 4


def random_signs(parameters: Sequence[Tensor], seed: int) -> Tensors:
    signs = []
    for i, p in enumerate(parameters):
        generator = torch.Generator(p.device).manual_seed(seed * 65_537 + i)
        signs.append(torch.randint(0, 2, p.shape, generator=generator, device=p.device).to(p).mul_(2).sub_(1))
    return signs


def check_blocks(op: str, p: Tensor, blocks: Blocks) -> None:
    axis, count = blocks
    if axis not in (0, 1) or p.dim() < 2 or count < 1 or p.flatten(1).shape[axis] % count:
        raise ValueError(
            f"{op}: expected blocks (axis 0 or 1, a count that divides the axis) of a matrix, got {tuple(blocks)} for shape "
            f"{list(p.shape)}"
        )


class Diagonal:
    def state(self, p: Tensor, blocks: Blocks) -> State:
        return {"diagonal": torch.zeros_like(p, memory_format=torch.preserve_format)}

    def update(self, states: Sequence[State], blocks: Sequence[Blocks], signs: Tensors, products: Tensors) -> None:
        estimates = torch._foreach_mul(tuple(products), tuple(signs))
        torch._foreach_lerp_([s["diagonal"] for s in states], estimates, 1 - _DECAY)

    def inverse(
        self, states: Sequence[State], blocks: Sequence[Blocks], count: int, damping: float
    ) -> Callable[[Tensors], Tensors]:
        scale = []
        for state in states:
            diagonal = state["diagonal"] / (1 - _DECAY**count)
            # One sample is noisy: rows share half of the estimate.
            mean = diagonal.mean(dim=tuple(range(1, diagonal.dim())), keepdim=True) if diagonal.dim() > 1 else diagonal
            scale.append((0.5 * (diagonal + mean)).clamp_min(0) + _DIAGONAL_FLOOR * mean.abs() + damping)
        return lambda residual: list(torch._foreach_div(tuple(residual), tuple(scale)))


class Kronecker:
    def state(self, p: Tensor, blocks: Blocks) -> State:
        count, rows, columns = _cut(p, blocks).shape
        sizes: dict[str, tuple[int, ...]] = {"trace": (count,)}
        for name, side, other in (("rows", rows, columns), ("columns", columns, rows)):
            if side <= _LONGEST_SIDE and other >= _LEAST_MEAN:
                sizes[name] = (count, side, side)
        return {name: torch.zeros(size, dtype=_type(p), device=p.device) for name, size in sizes.items()}

    def update(self, states: Sequence[State], blocks: Sequence[Blocks], signs: Tensors, products: Tensors) -> None:
        for state, cut, v, u in zip(states, blocks, signs, products, strict=True):
            V, U = (_cut(t, cut).to(_type(v)) for t in (v, u))
            state["trace"].lerp_((U * V).sum((1, 2)), 1 - _DECAY)
            for name, a, b in (("rows", U, V.mT), ("columns", V.mT, U)):
                if name in state:
                    factor = a @ b
                    state[name].lerp_((factor + factor.mT) / 2, 1 - _DECAY)

    def inverse(
        self, states: Sequence[State], blocks: Sequence[Blocks], count: int, damping: float
    ) -> Callable[[Tensors], Tensors]:
        weight = 1 - _DECAY**count
        inverses = [_Inverse(s, cut, weight, damping) for s, cut in zip(states, blocks, strict=True)]
        return lambda residual: [inverse(r) for inverse, r in zip(inverses, residual, strict=True)]


class _Inverse:
    """(L ⊗ R + damping I)^-1 of one matrix, block by block."""

    def __init__(self, state: State, blocks: Blocks, weight: float, damping: float) -> None:
        self.blocks, self.rows, self.columns = blocks, None, None
        mean = (state["trace"] / weight).clamp_min(0)[:, None, None]
        self.scale = mean
        if "rows" in state:
            values, self.rows = _eigen(state["rows"])
            self.scale = self.scale * values.unsqueeze(-1)
        if "columns" in state:
            values, self.columns = _eigen(state["columns"])
            self.scale = self.scale * values.unsqueeze(-2)
        self.damping = damping

    def __call__(self, residual: Tensor) -> Tensor:
        x = _cut(residual, self.blocks).to(self.scale.dtype)
        x = x if self.rows is None else self.rows.mT @ x
        x = x if self.columns is None else x @ self.columns
        x = x / (self.scale / x[0].numel() + self.damping)
        x = x if self.rows is None else self.rows @ x
        x = x if self.columns is None else x @ self.columns.mT
        return _joined(x, self.blocks, residual)


def _eigen(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues over their mean, and eigenvectors."""
    values, vectors = torch.linalg.eigh(factor)
    values = values.clamp_min(0)
    mean = values.mean(-1, keepdim=True)
    return torch.where(mean > 0, values / mean, 1.0) + _KRONECKER_FLOOR, vectors


PRECONDITIONERS: dict[str, Diagonal | Kronecker | None] = {"diagonal": Diagonal(), "kronecker": Kronecker(), "none": None}


def _cut(t: Tensor, blocks: Blocks) -> Tensor:
    """[count, rows, columns]."""
    axis, count = blocks
    matrix = t.flatten(1) if t.dim() > 1 else t[None]
    if axis == 0:
        return matrix.reshape(count, -1, matrix.shape[1])
    return matrix.reshape(matrix.shape[0], count, -1).movedim(1, 0)


def _joined(t: Tensor, blocks: Blocks, like: Tensor) -> Tensor:
    return (t if blocks[0] == 0 else t.movedim(0, 1)).reshape(like.shape).to(like.dtype)


def _type(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype == torch.float64 else torch.float32
