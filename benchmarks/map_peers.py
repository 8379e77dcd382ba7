# SPDX-License-Identifier: BSD-3-Clause
"""What else minimizes a differentiable loss: Adam, L-BFGS and Gauss-Newton with conjugate gradients, in torch's own operators."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Parameters = tuple[Tensor, ...]
RATES = (3e-3, 1e-2, 3e-2)
HISTORIES = (10, 100)
clock = time.process_time  # with one thread the time alone on the machine, whoever else is on it


@dataclass(frozen=True)
class Task:
    """A loss of some parameters, written in several ways."""

    start: Parameters
    residual: Callable[..., Tensor]  # of the parameters, by torch's operators: what Gauss-Newton linearizes
    losses: dict[str, Callable[..., Tensor]]
    projected: dict[str, Callable[..., Tensor]]  # of X alone, with the best Y for it
    unwhiten: Callable[[Tensor], Tensor] | None = None  # X from the variables in which queries and keys have unit covariance
    whitened: Tensor | None = None  # those of the start


class Ended(Exception):
    pass


@dataclass
class Curve:
    """Losses over the time since it was made; ends a run at a limit, or where the loss has stopped falling."""

    limit: float
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    end: str = "limit"
    began: float = field(default_factory=clock)

    def __call__(self, loss: float) -> None:
        self.seconds.append(clock() - self.began)
        self.losses.append(loss)
        if self.seconds[-1] > self.limit:
            raise Ended
        before = self.losses[:-100]
        if before and not min(self.losses[-100:]) < min(before) * (1 - 1e-9):
            self.end = "flat"
            raise Ended

    def first_below(self, target: float) -> int | None:
        return next((i for i, loss in enumerate(self.losses) if loss <= target), None)

    def entry(self, best: float, gaps: tuple[float, ...]) -> dict[str, Any]:
        reached = {f"{gap:g}": self.first_below(best * (1 + gap)) for gap in gaps}
        return {
            "seconds_to": {gap: None if i is None else self.seconds[i] for gap, i in reached.items()},
            "evaluations_to": {gap: None if i is None else i + 1 for gap, i in reached.items()},
            "seconds": self.seconds[-1],
            "excess": min(self.losses) / best - 1,
            "end": self.end,
        }


def fresh(start: Parameters) -> list[Tensor]:
    return [p.clone(memory_format=torch.contiguous_format).requires_grad_() for p in start]


def minimize(optimizer: Any, loss: Callable[..., Tensor], parameters: list[Tensor], limit: float) -> Curve:
    curve = Curve(limit)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(*parameters)
        value.backward()
        curve(value.item())
        return value

    try:
        while True:
            optimizer.step(closure)
            if isinstance(optimizer, torch.optim.LBFGS):  # it has given up: its line search finds nothing lower
                curve.end = "flat"
                return curve
    except Ended:
        return curve


def lbfgs(loss: Callable[..., Tensor], parameters: list[Tensor], history: int, limit: float) -> Curve:
    most = 10**9
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=most, max_eval=most, history_size=history, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
    return minimize(optimizer, loss, parameters, limit)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, most: int) -> Tensor:
    x, r = torch.zeros_like(b), b.clone()
    p, size = r.clone(), r @ r
    enough = tolerance**2 * size
    for _ in range(most):
        q = product(p)
        length = size / (p @ q)
        x, r = x + length * p, r - length * q
        size, before = r @ r, size
        if size <= enough:
            break
        p = r + size / before * p
    return x


def gauss_newton(task: Task, limit: float) -> Curve:
    """Levenberg-Marquardt on all parameters, its steps by conjugate gradients on J^T J v from torch.func's jvp and vjp."""
    sizes = [p.numel() for p in task.start]

    def residual(x: Tensor) -> Tensor:
        return task.residual(*(part.view(p.shape) for part, p in zip(x.split(sizes), task.start, strict=True))).flatten()

    x = torch.cat([p.flatten() for p in task.start])
    torch.func.vjp(residual, x), torch.func.jvp(residual, (x,), (x,))  # what they import is not timed
    curve, first, damping = Curve(limit), None, 0.0
    try:
        while True:
            r, pull = torch.func.vjp(residual, x)
            loss, gradient = (r @ r).item() / 2, pull(r)[0]
            curve(loss)
            size = gradient.norm().item()
            first = first or size

            def product(v: Tensor, x: Tensor = x, pull: Any = pull) -> Tensor:
                return pull(torch.func.jvp(residual, (x,), (v,))[1])[0]

            damping = damping or 1e-3 * (gradient @ product(gradient)).item() / size**2
            while True:
                step = conjugate_gradients(
                    lambda v, damping=damping: product(v) + damping * v,
                    -gradient,
                    min(0.1, (size / first) ** 0.5),
                    200,
                )
                found = loss - residual(x + step).square().sum().item() / 2
                promised = -(gradient @ step).item() - (torch.func.jvp(residual, (x,), (step,))[1].square().sum().item()) / 2
                if clock() - curve.began > limit:
                    raise Ended
                if found > 1e-4 * promised:
                    break
                damping *= 10
                if damping > 1e20:
                    curve.end = "flat"
                    return curve
            damping = damping / 10 if found > 0.5 * promised else damping * 4 if found < 0.25 * promised else damping
            x = x + step
    except Ended:
        return curve


def fastest(formulas: dict[str, Callable[..., Tensor]], parameters: list[Tensor]) -> str:
    """By the time of a loss and its gradient: peers get the best there is."""
    times = {}
    for name, loss in formulas.items():
        torch.autograd.grad(loss(*parameters), parameters)
        begin = clock()
        for _ in range(5):
            torch.autograd.grad(loss(*parameters), parameters)
        times[name] = clock() - begin
    return min(times, key=lambda name: times[name])


def run_peers(task: Task, limit: float) -> dict[str, dict[str, Curve]]:
    """By contestant, then by setting."""
    runs: dict[str, dict[str, Curve]] = {}
    name = fastest(task.losses, fresh(task.start))
    ways = [(f"{name} loss", task.losses[name], task.start)]
    if task.projected:
        name = fastest(task.projected, fresh(task.start[:1]))
        projected, unwhiten = task.projected[name], task.unwhiten
        ways.append((f"{name} loss, projected", projected, task.start[:1]))
        if unwhiten is not None and task.whitened is not None:
            ways.append((f"{name} loss, projected, whitened", lambda Z: projected(unwhiten(Z)), (task.whitened,)))
    for way, loss, start in ways:
        for rate in RATES:
            parameters = fresh(start)
            optimizer = torch.optim.Adam(parameters, lr=rate)
            runs.setdefault("Adam", {})[f"{way}, rate {rate:g}"] = minimize(optimizer, loss, parameters, limit)
        for history in HISTORIES:
            runs.setdefault("LBFGS", {})[f"{way}, history {history}"] = lbfgs(loss, fresh(start), history, limit)
    runs["Gauss-Newton, CG"] = {"eager residual": gauss_newton(task, limit)}
    return runs
