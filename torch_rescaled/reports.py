# SPDX-License-Identifier: BSD-3-Clause
"""What every solve reports: statuses, numbers, a history."""

import enum
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

from torch import Tensor

__all__ = ["Report", "SolveError", "Status"]


class Status(enum.Enum):
    """Why a solve ended; the value is the sentence to show."""

    RUNNING = "stopped by the caller: not yet converged"
    GRADIENT = "converged: every entry of the gradient is within gtol, or within rounding, of zero"
    LOSS = "converged: no step can lower the loss by more than ftol of it"
    STEP = "converged: the step moves no logit by more than xtol, or rounding"
    FLAT = "converged: the loss has not moved over five steps"
    MAX_ITERATIONS = "not converged: max_iterations reached"
    NON_FINITE = "failed: the loss is not finite at the starting point"
    STALLED = "failed: no step lowers the loss, which is far from flat"
    DRIFT = "no rescaled minimizer here: the loss is escaping to a sum of u of 0; x is the normalized form's solution"
    SINGULAR_SUM = "failed: the sum of u nearly cancels, where the normalized form has a pole; try the rescaled form"
    VANISHING = "no minimizer here: the logits A x run off to 0, where u does not depend on their size; try another x0"

    @property
    def converged(self) -> bool:
        return self in (Status.GRADIENT, Status.LOSS, Status.STEP, Status.FLAT)


STATUSES = list(Status)  # in the order of the operators' numbers


def statuses_of(summary: Tensor) -> tuple[Status, ...]:
    """A summary's first column."""
    return tuple(STATUSES[int(s)] for s in summary.select(-1, 0).flatten().tolist())


class SolveError(RuntimeError):
    """A solve that did not converge, raised by :meth:`Solution.raise_for_status`."""


@dataclass(frozen=True)
class Report:
    """What a solution says of its solve. For a batch of problems every number is a tensor ``[*]``, and ``statuses`` has them all.

    Attributes:
        statuses: why each solve ended, in the order of the flattened batch.
        summary: float64, by name in :meth:`number`.
        history: ``[*, iterations, 9]`` float64, columns named in ``columns``; NaN after a problem's last iteration.
        state: all that :func:`torch_rescaled.solve` needs to go on, bit for bit, as if it had not stopped.
    """

    statuses: tuple[Status, ...]
    summary: Tensor
    history: Tensor
    state: Tensor

    names: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ()
    models: ClassVar[tuple[str, ...]] = ("", ", full", ", L-BFGS", ", sampled")
    cost: ClassVar[str] = "reads"

    @property
    def status(self) -> Status:
        """Of a single problem; of a batch the first that did not converge."""
        return next((s for s in self.statuses if not s.converged), self.statuses[0] if self.statuses else Status.GRADIENT)

    def number(self, name: str) -> Tensor:
        """One of ``names``."""
        return self.summary.select(-1, self.names.index(name))

    @property
    def loss(self) -> Tensor:
        """inf where it is not representable; ``number("log_loss")`` is its logarithm."""
        return self.number("log_loss").exp()

    def raise_for_status(self) -> Self:
        """Returns itself if every problem converged.

        Raises:
            SolveError: with the sentence of the first that did not.
        """
        failed = [i for i, s in enumerate(self.statuses) if not s.converged]
        if failed:
            of = f"problem {failed[0]} (of {len(failed)} in {len(self.statuses)}): " if len(self.statuses) > 1 else ""
            raise SolveError(f"torch_rescaled::solve: {of}{self.statuses[failed[0]].value}")
        return self

    def plot(self, axes: Any = None) -> Any:
        """Loss above the best and relative gradient over the work done, of a single problem; needs matplotlib.

        Returns:
            The matplotlib axes.
        """
        if self.history.dim() != 2:
            raise ValueError(f"torch_rescaled::plot: expected a single problem, got a batch of {len(self.statuses)}")
        from torch_rescaled._plot import plot_history  # needs matplotlib

        column = dict(zip(self.columns, self.history.unbind(1), strict=True))
        by_memory = self.cost == "products" and bool((column["model"] == 2).any())  # L-BFGS has no products
        return plot_history(column, "iteration" if by_memory else self.cost, self.status.value, axes)

    def line(self, row: Tensor) -> str:
        """A line of the history as ``verbose`` prints it."""
        value = dict(zip(self.columns, row.tolist(), strict=True))
        form = ("rescaled", "normalized", "plain")[int(value["form"])] + self.models[int(value["model"])]
        return (
            f"{int(value['iteration']):4d}  log loss {value['log_loss']:.10g}  gradient {value['gradient']:.1e}  "
            f"step {value['step']:.1e} x {value['factor']:.3g}  damping {value['damping']:.0e}  "
            f"{self.cost} {int(value[self.cost])}  ({form})"
        )


R = TypeVar("R", bound=Report)
R_co = TypeVar("R_co", bound=Report, covariant=True)


class Problem(Protocol[R_co]):
    """What :func:`torch_rescaled.solve` takes: at most ``chunk`` iterations from x0 or a state, with the history of this call."""

    def _solve(self, x0: Tensor | None, state: Tensor | None, chunk: int | None, options: dict[str, Any]) -> R_co: ...
