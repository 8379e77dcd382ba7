# SPDX-License-Identifier: BSD-3-Clause
"""Attention maps to fit, as problems for :func:`torch_rescaled.solve`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_rescaled import _library as _library
from torch_rescaled._inputs import check_readable
from torch_rescaled.reports import Report, statuses_of

__all__ = ["AttentionRegression", "MapSolution", "MatrixRegression"]

_OPS = torch.ops.torch_rescaled


def _check(op: str, tensors: dict[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            check_readable(op, name, tensor)


def _for_maps(options: dict[str, Any]) -> dict[str, Any]:
    options = dict(options)
    group = options.pop("group")
    if options.pop("sampling") != "auto" or options.pop("sample_rows") is not None or options.pop("generator") is not None:
        raise ValueError(
            "torch_rescaled::solve: expected no sampling, sample_rows or generator with a map, which has no use for them"
        )
    for name in ("cg_iterations", "max_iterations"):
        if options[name] is None:
            del options[name]
    return {"group": None if group is None else group.group_name, **options}


@dataclass(frozen=True)
class MatrixRegression:
    r"""Minimize over X the loss of :math:`u(A_1 X A_2^T)` against B: :func:`torch_rescaled.matrix_regression_loss` names the terms.

    Args:
        A1: ``[*, n1, d1]``; A2: ``[*, n2, d2]``; B: ``[*, n1, n2]``, as in :func:`torch_rescaled.matrix_regression_loss`. Leading
            dimensions broadcast: a batch of problems, such as heads.
            Or in the place of B a ``teacher_query`` and ``teacher_key``, or ``crow_indices``, ``col_indices`` and ``values``.
        attn_mask, is_causal, regularization, kind, form, teacher_kind: as there.
        rank: solve for factors, X = left right^T, of this rank, at most min(d1, d2).
        sample_dims: the last so many leading dimensions are samples of one problem, such as sentences: they share X, and their
            losses are summed. Pad them to one length and leave the padding out by ``attn_mask``.

    Raises: as :func:`torch_rescaled.matrix_regression_loss`, when it is solved.

    Example:
        >>> import torch, torch_rescaled
        >>> A1, A2 = torch.randn(100, 5, dtype=torch.float64), torch.randn(80, 6, dtype=torch.float64)
        >>> B = torch.softmax(A1 @ torch.randn(5, 6, dtype=torch.float64) @ A2.mT, -1)
        >>> torch_rescaled.solve(torch_rescaled.MatrixRegression(A1, A2, B, form="normalized")).status.converged
        True

    Source: arXiv:2307.02419, whose losses are twice these.
    """

    A1: Tensor
    A2: Tensor
    B: Tensor | None = None
    attn_mask: Tensor | None = None
    is_causal: bool = False
    regularization: float = 0.0
    kind: str = "exp"
    form: str = "rescaled"
    rank: int | None = None
    sample_dims: int = 0
    teacher_query: Tensor | None = None
    teacher_key: Tensor | None = None
    teacher_kind: str = "exp"
    crow_indices: Tensor | None = None
    col_indices: Tensor | None = None
    values: Tensor | None = None

    def _solve(self, x0: Tensor | None, state: Tensor | None, chunk: int | None, options: dict[str, Any]) -> "MapSolution":
        target = {name: getattr(self, name) for name in ("teacher_query", "teacher_key", "crow_indices", "col_indices", "values")}
        given = {"A1": self.A1, "A2": self.A2, "B": self.B, "attn_mask": self.attn_mask, "X0": x0}
        _check("solve_matrix_regression", given | target)
        X, left, right, summary, history, state = _OPS.solve_matrix_regression(
            self.A1, self.A2, self.B, X0=x0, attn_mask=self.attn_mask, is_causal=self.is_causal,
            regularization=self.regularization, kind=self.kind, form=self.form, rank=self.rank, sample_dims=self.sample_dims,
            teacher_kind=self.teacher_kind, state=state, chunk=chunk, **target, **_for_maps(options),
        )  # fmt: skip
        factors = None if self.rank is None else (left, right)
        return MapSolution(statuses_of(summary), summary, history, state, X, factors, None, self)


@dataclass(frozen=True)
class AttentionRegression:
    r"""Minimize over X and Y how far one attention layer's outputs are from B.

    With u = exp, cosh or sinh and :math:`D = \mathrm{diag}(u(A_1 X A_2^T) 1)`

    * ``form="normalized"``: :math:`\frac12 \| D^{-1} u(A_1 X A_2^T) A_3 Y - B \|_F^2`; for ``kind="signed"``
      u = sinh, and D the sums of cosh
    * ``form="rescaled"``: :math:`\frac12 \| u(A_1 X A_2^T) A_3 Y - D B \|_F^2`

    plus :math:`\frac\lambda2 \| A_1 X A_2^T \|_F^2`, :math:`\lambda` the ``regularization``.

    Args:
        A1: ``[*, n1, d1]``; float32, float64, bfloat16 or float16 (converted: float32 arithmetic).
        A2: ``[*, n2, d2]``; A3: ``[*, n2, d3]``; B: ``[*, n1, dv]``: of A1's dtype. Leading dimensions broadcast: a batch of
            problems.
        attn_mask: bool, broadcastable to ``[*, n1, n2]``; true where a row has a key. Rows without keys have loss 0.
        is_causal: row i has keys 0 to i alone, beside ``attn_mask``.
        regularization: :math:`\lambda \ge 0`.
        kind: ``"exp"``, ``"cosh"``, ``"sinh"`` or ``"signed"``.
        form: ``"normalized"`` or, not for ``"signed"``, ``"rescaled"``.
        rank, sample_dims: as in :class:`MatrixRegression`.

    Raises:
        ValueError, TypeError: when it is solved, where arguments do not fit.

    Example:
        >>> import torch, torch_rescaled
        >>> A = torch.randn(200, 6, dtype=torch.float64)
        >>> X, Y = torch.randn(6, 6, dtype=torch.float64) / 3, torch.randn(6, 2, dtype=torch.float64)
        >>> B = torch.softmax(A @ X @ A.mT, -1) @ A @ Y
        >>> solution = torch_rescaled.solve(torch_rescaled.AttentionRegression(A, A, A, B), X + 0.1)
        >>> solution.Y.shape
        torch.Size([6, 2])

    Source: L(X, Y) of arXiv:2309.07418, which is twice this loss; variable projection is Golub and Pereyra's.
    """

    A1: Tensor
    A2: Tensor
    A3: Tensor
    B: Tensor
    attn_mask: Tensor | None = None
    is_causal: bool = False
    regularization: float = 0.0
    kind: str = "exp"
    form: str = "normalized"
    rank: int | None = None
    sample_dims: int = 0

    def _solve(self, x0: Tensor | None, state: Tensor | None, chunk: int | None, options: dict[str, Any]) -> "MapSolution":
        tensors = {"A1": self.A1, "A2": self.A2, "A3": self.A3, "B": self.B, "attn_mask": self.attn_mask, "X0": x0}
        _check("solve_attention_regression", tensors)
        X, Y, left, right, summary, history, state = _OPS.solve_attention_regression(
            self.A1, self.A2, self.A3, self.B, X0=x0, attn_mask=self.attn_mask, is_causal=self.is_causal,
            regularization=self.regularization, kind=self.kind, form=self.form, rank=self.rank, sample_dims=self.sample_dims,
            state=state, chunk=chunk, **_for_maps(options),
        )  # fmt: skip
        factors = None if self.rank is None else (left, right)
        return MapSolution(statuses_of(summary), summary, history, state, X, factors, Y, self)


@dataclass(frozen=True)
class MapSolution(Report):
    """What :func:`torch_rescaled.solve` found for a map; with all of :class:`torch_rescaled.Report`.

    Attributes:
        X: ``[*, d1, d2]``, in the type of the arithmetic; differentiable once in the matrices and the target, by the implicit
            function theorem. Where the Hessian is not positive definite, at a saddle point say, its derivative is NaN.
        factors: with a rank, left ``[*, d1, rank]`` and right ``[*, d2, rank]``, X = left right^T.
        Y: ``[*, d3, dv]`` of an :class:`AttentionRegression`, the best for X.
    """

    X: Tensor
    factors: tuple[Tensor, Tensor] | None
    Y: Tensor | None
    problem: MatrixRegression | AttentionRegression

    #: ``gradient``: in the metric of the curvature, over the root of twice the loss; ``evaluations`` of the loss; ``products``
    #: of the curvature, by conjugate gradients: L-BFGS has none.
    names: ClassVar[tuple[str, ...]] = ("status", "log_loss", "gradient", "iterations", "evaluations", "products", "seconds")
    #: ``step``: root of the mean square of the logits' change before the ``factor``; the others as in :class:`Solution`.
    columns: ClassVar[tuple[str, ...]] = (
        "iteration", "log_loss", "gradient", "step", "factor", "damping", "model", "form", "products",
    )  # fmt: skip
    cost: ClassVar[str] = "products"
