# SPDX-License-Identifier: BSD-3-Clause
"""Conjugate gradients on lists of tensors, for quadratic models of a loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = list[Tensor]


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Float64 of all entries together, a tensor: no synchronization."""
    return torch.stack([(x * y).sum(dtype=torch.float64).to(a[0].device) for x, y in zip(a, b, strict=True)]).sum()


def plus(a: Tensors, b: Sequence[Tensor], factor: Tensor | float = 1.0) -> Tensors:
    scaled = torch._foreach_mul(tuple(b), factor) if isinstance(factor, float) else [x * factor.to(x) for x in b]
    return list(torch._foreach_add(a, tuple(scaled)))


@dataclass(frozen=True)
class Iterate:
    step: Tensors
    model: float  # 1/2 <step, A step> - <right, step>


def conjugate_gradients(
    product: Callable[[Tensors], Tensors],
    right: Tensors,
    start: Tensors | None,
    precondition: Callable[[Tensors], Tensors],
    max_iterations: int,
    tolerance: float,
) -> list[Iterate]:
    """Minimizes the model; one host synchronization an iteration.

    Returns iterates, ever farther apart, the last one last. Stops when the last iterations (a tenth of all, at least five) lowered
    the model by less than `tolerance` of it each, or when the residual is zero to rounding.
    """
    step = [torch.zeros_like(b) for b in right] if start is None else start
    residual = list(right) if start is None else plus(right, product(step), -1.0)
    direction = precondition(residual)
    fit = dot(residual, direction)
    models: list[float] = []
    kept: list[Iterate] = []
    next_kept, first_fit = 1, None
    for i in range(1, max_iterations + 1):
        curved = product(direction)
        curvature = dot(direction, curved)
        length = fit / curvature
        new_step = plus(step, direction, length)
        residual = plus(residual, curved, -length)
        preconditioned = precondition(residual)
        new_fit = dot(residual, preconditioned)
        model = -0.5 * dot(new_step, plus(residual, right))
        bent, value, old_fit, left = torch.stack([curvature, model, fit, new_fit]).tolist()
        first_fit = old_fit if first_fit is None else first_fit
        if not bent > 0:
            if not kept and bent < 0:  # along it the model falls without end: as far as its slope says
                kept.append(Iterate(plus(step, direction, -length), -0.5 * abs(old_fit * old_fit / bent)))
            break
        step, models = new_step, [*models, value]
        if i >= next_kept or i == max_iterations:
            kept.append(Iterate(step, value))
            next_kept = int(next_kept * 1.3) + 1
        window = max(5, i // 10)
        done = i > window and value < 0 and (value - models[i - 1 - window]) / value < tolerance * window
        if done or not left > 1e-28 * first_fit:
            break
        direction = plus(preconditioned, direction, new_fit / fit)
        fit = new_fit
    if models and (not kept or kept[-1].step is not step):
        kept.append(Iterate(step, models[-1]))
    return kept
