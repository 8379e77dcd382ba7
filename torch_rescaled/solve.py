# SPDX-License-Identifier: BSD-3-Clause
"""Regressions as problems, and their solver."""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_rescaled import _library as _library
from torch_rescaled._inputs import check_readable

__all__ = ["Regression", "Solution", "SolveError", "Status", "solve"]

_OPS = torch.ops.torch_rescaled
_FORMS = ("rescaled", "normalized", "plain")


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


_STATUSES = list(Status)  # in the order of the operator's numbers
_SUMMARY = (
    "status", "log_loss", "gradient", "iterations", "reads", "grams", "certificate", "deficient", "effective_rows",
    "seconds_reads", "seconds_grams", "seconds", "method", "gram_ratio",
)  # fmt: skip
_HISTORY = ("iteration", "log_loss", "gradient", "step", "factor", "damping", "model", "form", "reads")
_METHODS = ("newton", "lbfgs")


class SolveError(RuntimeError):
    """A solve that did not converge, raised by :meth:`Solution.raise_for_status`."""


@dataclass(frozen=True)
class Regression:
    r"""Minimize over x the loss of :math:`u(A x)` against b: :func:`torch_rescaled.regression_loss` names the terms.

    Args:
        A: ``[*, n, d]``; b: ``[*, n]``; row_weight, penalty_weight: ``[*, n]``. Leading dimensions broadcast: a batch of problems.
        kind: ``"exp"``, ``"cosh"`` or ``"sinh"``.
        form: ``"rescaled"``, ``"normalized"`` or ``"plain"``.

    Raises: as :func:`torch_rescaled.regression_loss`, when the problem is made.

    Example:
        >>> import torch, torch_rescaled
        >>> A = torch.randn(1000, 5, dtype=torch.float64)
        >>> b = torch.softmax(A @ torch.ones(5, dtype=torch.float64), 0)
        >>> torch_rescaled.solve(torch_rescaled.Regression(A, b, form="normalized")).status.converged
        True
    """

    A: Tensor
    b: Tensor
    row_weight: Tensor | None = None
    penalty_weight: Tensor | None = None
    kind: str = "exp"
    form: str = "rescaled"

    def __post_init__(self) -> None:
        for name in ("A", "b", "row_weight", "penalty_weight"):
            tensor = getattr(self, name)
            if tensor is not None:
                check_readable("Regression", name, tensor)
        _OPS._regression_check(self.A, self.b, self.row_weight, self.penalty_weight, self.kind, self.form)


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` found. For a batch of problems every number is a tensor ``[*]``, and ``statuses`` has them all.

    Attributes:
        x: ``[*, d]``, differentiable once in the problem's A, b and weights, by the implicit function theorem.
        statuses: why each solve ended, in the order of the flattened batch.
        summary: ``[*, 14]`` float64 by name in :meth:`number`.
        history: ``[*, iterations, 9]`` float64, columns named in ``columns``; NaN after a problem's last iteration.
        state: all that :func:`solve` needs to go on, bit for bit, as if it had not stopped.
    """

    x: Tensor
    statuses: tuple[Status, ...]
    summary: Tensor
    history: Tensor
    state: Tensor
    problem: Regression

    #: Names of the history's columns. ``gradient``: largest entry over the root of the sum of squares of its terms (eps at
    #: best); ``step``: largest change of a logit (NaN for L-BFGS, which does not read A for it); ``model``: 0 Gauss-Newton, 1 the
    #: full Hessian, 2 L-BFGS; ``form``: 0 rescaled, 1 normalized, 2 plain.
    columns = _HISTORY

    @property
    def status(self) -> Status:
        """Of a single problem; of a batch the first that did not converge."""
        return next((s for s in self.statuses if not s.converged), self.statuses[0] if self.statuses else Status.GRADIENT)

    def number(self, name: str) -> Tensor:
        """One of ``log_loss``, ``gradient``, ``iterations``, ``reads`` (of A), ``grams`` (products of d x d), ``certificate``
        (rescaled: below 1/4 there is a minimum near the normalized solution), ``deficient`` (1: x is one of many minimizers),
        ``effective_rows`` (how many rows the fit rests on), ``seconds_reads``, ``seconds_grams``, ``seconds``, ``method``
        (0 Newton, 1 L-BFGS), ``gram_ratio`` (what a Gram costs in reads of A; NaN where ``"auto"`` did not measure it)."""
        return self.summary.select(-1, _SUMMARY.index(name))

    @property
    def method(self) -> str:
        """The method used and why, of a single problem or a batch's first: ``"lbfgs: a Gram costs 2.4 reads of A"``."""
        if self.summary.numel() == 0:
            return _METHODS[0]
        method, ratio = (self.number(name).flatten()[0].item() for name in ("method", "gram_ratio"))
        return _METHODS[int(method)] + ("" if math.isnan(ratio) else f": a Gram costs {ratio:.2g} reads of A")

    @property
    def loss(self) -> Tensor:
        """inf where it is not representable; ``number("log_loss")`` is its logarithm."""
        return self.number("log_loss").exp()

    def raise_for_status(self) -> "Solution":
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
        """Loss above the best and relative gradient over reads of A, of a single problem; needs matplotlib.

        Returns:
            The matplotlib axes.
        """
        if self.history.dim() != 2:
            raise ValueError(f"torch_rescaled::Solution.plot: expected a single problem, got a batch of {len(self.statuses)}")
        from torch_rescaled._plot import plot_history  # needs matplotlib

        return plot_history(dict(zip(_HISTORY, self.history.unbind(1), strict=True)), self.status.value, axes)


def _line(row: Tensor) -> str:
    value = dict(zip(_HISTORY, row.tolist(), strict=True))
    name = _FORMS[int(value["form"])] + ("", ", full", ", L-BFGS")[int(value["model"])]
    return (
        f"{int(value['iteration']):4d}  log loss {value['log_loss']:.10g}  gradient {value['gradient']:.1e}  "
        f"step {value['step']:.1e} x {value['factor']:.3g}  damping {value['damping']:.0e}  reads {int(value['reads'])}  ({name})"
    )


def solve(
    problem: Regression,
    x0: Tensor | None = None,
    *,
    method: str = "auto",
    gtol: float = 0.0,
    ftol: float | None = None,
    xtol: float = 0.0,
    max_iterations: int = 100,
    damping: float = 1e-12,
    state: Tensor | None = None,
    callback: Callable[[Solution], bool | None] | None = None,
    verbose: int = 0,
) -> Solution:
    r"""Solves a problem by damped Newton steps or L-BFGS around one Hessian: a certified solution, or the reason why there is none.

    The rescaled form is solved by way of the normalized one; ``docs/solver.md`` has the algorithm and the evidence for it.

    Args:
        problem: what to minimize; batches are solved problem by problem.
        x0: ``[*, d]``; by default a start from b alone (exp: least squares of log b; cosh: a top eigenvector; sinh: the best of 24
            least squares of asinh, with either sign). Zero is stationary for cosh and sinh: not a start.
        method: ``"newton"``: a Hessian at every iteration, two reads of A and a Gram (product of d x d). ``"lbfgs"``: one Hessian,
            near the solution, and limited-memory BFGS around it, one read an iteration; Newton steps where that does not pay.
            ``"auto"``: L-BFGS where a Gram, measured on a part of A, costs more than a read; the choice depends on the machine's
            speed, ``Solution.method`` says it and why.
        gtol: stop when every entry of the gradient is at most this fraction of the root of the sum of squares of its terms (a term
            counts with the absolute values it is the difference of); rounding (3 eps) stops in any case.
        ftol: stop when the model promises no more than this fraction of the loss; 1e-15, in float32 1e-8, by default.
        xtol: stop when the step changes no logit by more than this fraction of the largest.
        max_iterations: of all calls together that share a state.
        damping: the least Levenberg-Marquardt damping, relative to the Hessian's diagonal.
        state: ``Solution.state`` of an earlier call with the same problem: goes on where that stopped.
        callback: called with the :class:`Solution` so far after every iteration; a true result stops.
        verbose: 1 prints a line per iteration.

    Returns:
        A :class:`Solution`, also for bad data (NaN, infinite, empty, rank-deficient): look at its status, or call
        ``raise_for_status()``.

    Raises:
        ValueError: shapes, ``method`` or a tolerance do not fit. TypeError: a dtype does not fit.

    Example:
        >>> import torch, torch_rescaled
        >>> A = torch.randn(1000, 5, dtype=torch.float64)
        >>> b = torch.softmax(A @ torch.ones(5, dtype=torch.float64), 0)
        >>> solution = torch_rescaled.solve(torch_rescaled.Regression(A, b, form="normalized")).raise_for_status()

    Source: arXiv:2305.00660, with the Hessian of its section on the rescaled loss; direction, line search, starts and stops are
    this project's own.
    """
    if x0 is not None:
        check_readable("solve_regression", "x0", x0)
    options = {"method": method, "gtol": gtol, "ftol": ftol, "xtol": xtol, "max_iterations": max_iterations, "damping": damping}
    stepwise = callback is not None or verbose > 0
    lines: list[Tensor] = []
    while True:
        x, summary, history, state = _OPS.solve_regression(
            problem.A, problem.b, x0, row_weight=problem.row_weight, penalty_weight=problem.penalty_weight, kind=problem.kind,
            form=problem.form, state=state, chunk=1 if stepwise else None, **options,
        )  # fmt: skip
        lines.append(history)
        statuses = tuple(_STATUSES[int(s)] for s in summary.select(-1, 0).flatten().tolist())
        solution = Solution(x, statuses, summary, torch.cat(lines, -2), state, problem)
        if verbose:
            for row in history.flatten(0, -2):
                if not row.isnan().all():
                    print(_line(row))
        stop = callback is not None and callback(solution)
        if not stepwise or stop or Status.RUNNING not in statuses:
            if verbose:
                print(solution.status.value)
            return solution
