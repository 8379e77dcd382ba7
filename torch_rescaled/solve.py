# SPDX-License-Identifier: BSD-3-Clause
"""Regressions as problems, and the solver."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_rescaled import _library as _library
from torch_rescaled._inputs import check_readable, components, design
from torch_rescaled.reports import Problem, R, Report, Status, statuses_of

__all__ = ["Regression", "Solution", "solve"]

_OPS = torch.ops.torch_rescaled
_METHODS = ("newton", "lbfgs", "sampled", "cg")


@dataclass(frozen=True)
class Regression:
    r"""Minimize over x the loss of :math:`u(A x)` against b: :func:`torch_rescaled.regression_loss` names the terms.

    Args:
        A: ``[*, n, d]``, dense or sparse (``torch.sparse_csr``, or any format of ``scipy.sparse``); b: ``[*, n]``; row_weight,
            penalty_weight: ``[*, n]``. Leading dimensions broadcast: a batch of problems.
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
        object.__setattr__(self, "A", design("Regression", self.A))
        for name in ("b", "row_weight", "penalty_weight"):
            tensor = getattr(self, name)
            if tensor is not None:
                check_readable("Regression", name, tensor)
        A, pattern = self.A, tuple[Any, ...]()
        if A.layout == torch.sparse_csr:
            crow_indices, col_indices, A, columns = components(A)
            pattern = (crow_indices, col_indices, columns)
        _OPS._regression_check(A, self.b, self.row_weight, self.penalty_weight, self.kind, self.form, *pattern)

    def _solve(self, x0: Tensor | None, state: Tensor | None, chunk: int | None, options: dict[str, Any]) -> "Solution":
        if x0 is not None:
            check_readable("solve_regression", "x0", x0)
        options = {"method": "auto", **options}
        if options["max_iterations"] is None:
            del options["max_iterations"]
        if options.pop("cg_iterations") is not None:
            raise ValueError("torch_rescaled::solve: expected no cg_iterations with a Regression, which has no use for it, got one")
        group = options.pop("group")
        generator = options.pop("generator")
        if generator is not None:
            options["seed"] = int(torch.randint(2**53, (), generator=generator, device=generator.device))
        sparse = self.A.layout == torch.sparse_csr
        op, A = (_OPS.solve_regression_csr, components(self.A)) if sparse else (_OPS.solve_regression, (self.A,))
        x, summary, history, state = op(
            *A, self.b, x0, row_weight=self.row_weight, penalty_weight=self.penalty_weight, kind=self.kind, form=self.form,
            group=None if group is None else group.group_name, state=state, chunk=chunk, **options,
        )  # fmt: skip
        return Solution(statuses_of(summary), summary, history, state, x, self)


@dataclass(frozen=True)
class Solution(Report):
    """What :func:`solve` found for a :class:`Regression`; with all of :class:`torch_rescaled.Report`.

    Attributes:
        x: ``[*, d]``, differentiable once in the problem's A, b and weights, by the implicit function theorem.
    """

    x: Tensor
    problem: Regression

    #: ``reads`` of A; ``grams``: products of d x d; ``certificate``: rescaled, below 1/4 there is a minimum near the normalized
    #: solution; ``deficient``: 1 where x is one of many minimizers; ``effective_rows``: how many rows the fit rests on; ``method``:
    #: 0 Newton, 1 L-BFGS, 2 sampled, 3 cg; ``gram_ratio``: what a Gram costs in reads of A, NaN where ``"auto"`` did not measure
    #: it; ``samples``: Hessians of sampled rows.
    names: ClassVar[tuple[str, ...]] = (
        "status", "log_loss", "gradient", "iterations", "reads", "grams", "certificate", "deficient", "effective_rows",
        "seconds_reads", "seconds_grams", "seconds", "method", "gram_ratio", "samples",
    )  # fmt: skip
    #: ``gradient``: largest entry over the root of the sum of squares of its terms (eps at best); ``step``: largest change of a
    #: logit (NaN for L-BFGS, which does not read A for it); ``model``: 0 Gauss-Newton, 1 the full Hessian, 2 L-BFGS, 3
    #: Gauss-Newton of sampled rows; ``form``: 0 rescaled, 1 normalized, 2 plain.
    columns: ClassVar[tuple[str, ...]] = (
        "iteration", "log_loss", "gradient", "step", "factor", "damping", "model", "form", "reads",
    )  # fmt: skip

    @property
    def method(self) -> str:
        """The method used and why, of a single problem or a batch's first: ``"lbfgs: a Gram costs 2.4 reads of A"``;
        ``"sampled: a Gram costs 9 reads of A, which has 1562 rows a column"``."""
        if self.summary.numel() == 0:
            return _METHODS[0]
        method, ratio = (self.number(name).flatten()[0].item() for name in ("method", "gram_ratio"))
        n, d = self.problem.A.shape[-2:]
        rows = f", which has {n // max(d, 1)} rows a column" if int(method) == _METHODS.index("sampled") else ""
        return _METHODS[int(method)] + ("" if math.isnan(ratio) else f": a Gram costs {ratio:.2g} reads of A{rows}")


def solve(
    problem: Problem[R],
    x0: Tensor | None = None,
    *,
    method: str = "auto",
    gtol: float = 0.0,
    ftol: float | None = None,
    xtol: float = 0.0,
    max_iterations: int | None = None,
    damping: float | None = None,
    cg_iterations: int | None = None,
    group: Any = None,
    sampling: str = "auto",
    sample_rows: int | None = None,
    generator: torch.Generator | None = None,
    state: Tensor | None = None,
    callback: Callable[[R], bool | None] | None = None,
    verbose: int = 0,
) -> R:
    r"""Solves a problem by damped Newton steps or L-BFGS around one Hessian: a certified solution, or the reason why there is none.

    The rescaled form is solved by way of the normalized one; ``docs/solver.md`` has the algorithm and the evidence for it.

    Args:
        problem: what to minimize: a :class:`Regression`, :class:`torch_rescaled.MatrixRegression` or
            :class:`torch_rescaled.AttentionRegression`; batches are solved problem by problem.
        x0: ``[*, d]``, for maps X ``[*, d1, d2]``; by default a start from the target: of a regression
            from b alone (exp: least squares of log b; cosh: a top eigenvector; sinh: the best of 24 least squares of asinh, with
            either sign). Zero is stationary for cosh and sinh: not a start.
        method: ``"newton"``: a Hessian at every iteration, two reads of A and a Gram (product of d x d). ``"lbfgs"``: one Hessian,
            near the solution, and limited-memory BFGS around it, one read an iteration; Newton steps where that does not pay.
            ``"sampled"``: the same around the Hessian of a sample of the rows, whose Gram is next to nothing. ``"cg"``: Newton
            steps by Hessian products, one read each, and conjugate gradients, with a sample's Hessian as the preconditioner or,
            beyond 2048 columns, the diagonal of Gauss-Newton's: nothing of d x d. ``"auto"``: Newton where a Gram, measured on a
            part of A, costs no more than a read; sampled above 7 reads (3 for cosh and sinh from their own starts) with 200 rows
            a column or more; else L-BFGS. The choice depends on the machine's speed, ``Solution.method`` says it and why. Of a
            MatrixRegression: ``"newton"``, the Hessian formed; ``"cg"``, its products alone; ``"lbfgs"``, limited-memory BFGS in
            the metric of the curvature, and Newton steps where rounding ends its progress; ``"auto"``: the first up to 256
            unknowns without a rank, else the second for the plain form and the third for the others. Of an AttentionRegression:
            ``"projection"``, X with the best Y for it, or ``"joint"``, X and Y, by products; ``"lbfgs"`` and ``"lbfgs_joint"``,
            the same by L-BFGS; ``"auto"``: ``"projection"`` where the keys are at least four times as many as the columns of A2
            and of B, and Jacobians of all rows are kept (``docs/solver.md``), else ``"lbfgs"``.
        gtol: stop when every entry of the gradient is at most this fraction of the root of the sum of squares of its terms (a term
            counts with the absolute values it is the difference of); rounding (3 eps) stops in any case. Of a map: the gradient's
            size in the metric of the curvature, over the root of twice the loss.
        ftol: stop when the model promises no more than this fraction of the loss; 1e-15 (maps: 1e-12), in float32 1e-8, by default.
        xtol: stop when the step changes no logit by more than this fraction of the largest; of a map, in the mean square.
        max_iterations: of all calls together that share a state; 100, of maps by L-BFGS 1000, by default.
        damping: the least Levenberg-Marquardt damping, relative to the Hessian's diagonal (1e-12) or, for maps, to what the typical
            curvature gives to a change of the logits (1e-9).
        cg_iterations: the most products of conjugate gradients in an iteration, 200 by default; maps only.
        group: a ``torch.distributed`` process group whose processes hold different rows (any number of them, also none): of a
            :class:`Regression` A, b and the weights, of a map A1 and B, with the same A2 and A3. All call ``solve`` with the same
            options, sums over rows become sums over the group, and all find the same solution, which has no derivative.
        sampling: by what chance rows are drawn: ``"weight"``, their weights in the Gram; ``"row_norm"``, times the squares of
            their lengths; ``"leverage"``, of their lengths in the Hessian's metric, nearly; ``"uniform"``. ``"auto"``: by weight,
            and by leverage once that has gained too little. A Regression's ``"sampled"`` and ``"cg"`` only.
        sample_rows: how many are drawn, with replacement; by default 40 for each column, up to 160 where that is no more than a
            sixteenth of the rows. With fewer rows than twice that the Hessian is exact.
        generator: where the sample's seed comes from, one number of it for a call without ``state`` (which has its seed); by
            default the seed is 0: the same solve draws the same rows.
        state: ``Solution.state`` of an earlier call with the same problem: goes on where that stopped.
        callback: called with the solution so far after every iteration; a true result stops.
        verbose: 1 prints a line per iteration.

    Returns:
        A :class:`Solution` or :class:`torch_rescaled.MapSolution`, also for bad data (NaN, infinite, empty, rank-deficient): look
        at its status, or call ``raise_for_status()``.

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
    options: dict[str, Any] = {
        "method": method, "gtol": gtol, "ftol": ftol, "xtol": xtol, "max_iterations": max_iterations,
        "cg_iterations": cg_iterations, "group": group, "sampling": sampling, "sample_rows": sample_rows,
        "generator": generator,
    }  # fmt: skip
    if damping is not None:
        options["damping"] = damping
    chunk = 1 if callback is not None or verbose > 0 else None
    lines: list[Tensor] = []
    while True:
        solution = problem._solve(x0, state, chunk, options)
        options["generator"] = None  # the state has its seed
        new, state = solution.history, solution.state
        lines.append(new)
        solution = replace(solution, history=torch.cat(lines, -2))
        if verbose:
            for row in new.flatten(0, -2):
                if not row.isnan().all():
                    print(solution.line(row))
        stop = callback is not None and callback(solution)
        if chunk is None or stop or Status.RUNNING not in solution.statuses:
            if verbose:
                print(solution.status.value)
            return solution
