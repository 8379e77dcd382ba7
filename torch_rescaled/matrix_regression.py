# SPDX-License-Identifier: BSD-3-Clause
"""The matrix regression operators as typed, documented functions."""

import torch
from torch import Tensor

from torch_rescaled import _library as _library
from torch_rescaled._inputs import check_readable

__all__ = ["matrix_regression_evaluate", "matrix_regression_hvp", "matrix_regression_loss"]

# TorchScript compiles these functions, and knows no keyword-only arguments with defaults: all stay positional.


@torch.jit.unused
def _check(op: str, tensors: dict[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            check_readable(op, name, tensor)


def matrix_regression_loss(
    A1: Tensor,
    X: Tensor,
    A2: Tensor,
    B: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    regularization: float = 0.0,
    kind: str = "exp",
    form: str = "rescaled",
    teacher_query: Tensor | None = None,
    teacher_key: Tensor | None = None,
    teacher_kind: str = "exp",
    crow_indices: Tensor | None = None,
    col_indices: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    r"""How far the attention map :math:`u(A_1 X A_2^T)` is from B, with u = exp, cosh or sinh, without forming the map.

    With :math:`D = \mathrm{diag}(u(A_1 X A_2^T) 1)` and sums over the elements that the masks leave

    * ``form="rescaled"``: :math:`\frac12 \| u(A_1 X A_2^T) - D B \|_F^2`
    * ``form="normalized"``: :math:`\frac12 \| D^{-1} u(A_1 X A_2^T) - B \|_F^2`; of softmax maps for exp
    * ``form="plain"``: :math:`\frac12 \| u(A_1 X A_2^T) - B \|_F^2`

    plus :math:`\frac\lambda2 \| A_1 X A_2^T \|_F^2` over all elements, :math:`\lambda` the ``regularization``. The papers' loss is
    twice this one.

    Args:
        A1: ``[*, n1, d1]``; float32, float64, bfloat16 or float16 (converted: float32 arithmetic); any strides. Leading dimensions
            of all arguments broadcast.
        X: ``[*, d1, d2]``; float32, float64 for a float64 A1.
        A2: ``[*, n2, d2]``, of A1's dtype.
        B: ``[*, n1, n2]``, of X's dtype; or in its place one of the two below.
        attn_mask: bool, broadcastable to ``[*, n1, n2]``; true where an element takes part. What it hides enters neither the sums
            of u nor the loss, whatever B has there.
        is_causal: row i has the columns 0 to i alone, beside ``attn_mask``.
        regularization: :math:`\lambda \ge 0`.
        kind: ``"exp"``, ``"cosh"`` or ``"sinh"``.
        form: ``"rescaled"``, ``"normalized"`` or ``"plain"``.
        teacher_query, teacher_key: ``[*, n1, e]`` and ``[*, n2, e]``, of A1's dtype: B is the map
            :math:`\mathrm{diag}(u_t(Q_t K_t^T) 1)^{-1} u_t(Q_t K_t^T)` of a teacher whose scale is in them already, over the
            elements that the masks leave. Never formed: one more product of the block in each pass.
        teacher_kind: of :math:`u_t`: ``"exp"``, ``"cosh"`` or ``"sinh"``.
        crow_indices, col_indices, values: ``[*, n1 + 1]`` and ``[*, nnz]`` int64, ``[*, nnz]`` of X's dtype: the components of a
            row-sparse B as of :func:`torch.sparse_csr_tensor`, columns ascending in each row, none twice. Elements that are not
            stored are 0, and count in the loss.

    Returns:
        ``[*]`` in X's dtype; inf where the loss is not representable (rescaled and plain, in float32 from logits of about 44):
        :func:`matrix_regression_evaluate` gives its logarithm. A row without elements has loss 0.

    Differentiable in A1, X, A2 and a dense B: reverse, forward, second order and, by formulas that PyTorch differentiates,
    third. On CPU everything to second order walks the map in blocks, with memory for n1 + n2 rows (a gradient in B has B's
    size); on other devices, for forward over forward and for third order arrays of the map's size are formed. A teacher and
    the values of a sparse B are constants. Under autocast everything is float32.

    Raises:
        ValueError: shapes, devices, indices, ``kind``, ``form`` or ``regularization`` do not fit, or there is not one target.
        TypeError: a dtype does not fit, or an argument is a tensor subclass.
        NotImplementedError: tensors on a device without kernels, nested tensors, or a derivative in a teacher or in values.

    Example:
        >>> import torch, torch_rescaled
        >>> A1, A2, B = torch.randn(100, 5), torch.randn(80, 6), torch.rand(100, 80).softmax(-1)
        >>> X = torch.zeros(5, 6, requires_grad=True)
        >>> torch_rescaled.matrix_regression_loss(A1, X, A2, B, form="normalized").backward()
        >>> teacher = {"teacher_query": torch.randn(100, 8), "teacher_key": torch.randn(80, 8)}
        >>> torch_rescaled.matrix_regression_loss(A1, X, A2, form="normalized", **teacher).backward()
        >>> few = torch.where(B > 0.0125, B, 0.0).to_sparse_csr()
        >>> rows = {"crow_indices": few.crow_indices(), "col_indices": few.col_indices(), "values": few.values()}
        >>> torch_rescaled.matrix_regression_loss(A1, X, A2, form="normalized", **rows).backward()

    Source: arXiv:2307.02419 (both forms), arXiv:2305.00660 (u = cosh, sinh).
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        tensors = {"A1": A1, "X": X, "A2": A2, "B": B, "attn_mask": attn_mask, "teacher_query": teacher_query}
        tensors |= {"teacher_key": teacher_key, "crow_indices": crow_indices, "col_indices": col_indices, "values": values}
        _check("matrix_regression_loss", tensors)
    loss: Tensor = torch.ops.torch_rescaled.matrix_regression_loss(
        A1, X, A2, B, attn_mask=attn_mask, is_causal=is_causal, regularization=regularization, kind=kind, form=form,
        teacher_query=teacher_query, teacher_key=teacher_key, teacher_kind=teacher_kind, crow_indices=crow_indices,
        col_indices=col_indices, values=values,
    )  # fmt: skip
    return loss


def matrix_regression_evaluate(
    A1: Tensor,
    X: Tensor,
    A2: Tensor,
    B: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    regularization: float = 0.0,
    kind: str = "exp",
    form: str = "rescaled",
    teacher_query: Tensor | None = None,
    teacher_key: Tensor | None = None,
    teacher_kind: str = "exp",
    crow_indices: Tensor | None = None,
    col_indices: Tensor | None = None,
    values: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Loss and gradient in X with their scale taken out: finite however large the loss is.

    Args:
        A1, X, A2, B, attn_mask, is_causal, regularization, kind, form, teacher_query, teacher_key, teacher_kind, crow_indices,
            col_indices, values: as in :func:`matrix_regression_loss`.

    Returns:
        ``(log_loss [*], gradient [*, d1, d2], log_scale [*])`` in X's dtype: the gradient of the loss is
        ``exp(log_scale) * gradient``, the direction of steepest descent needs no scale. ``log_scale`` is 0 in the normalized form.

    Not differentiable: backward raises; differentiate :func:`matrix_regression_loss`.

    Raises: as :func:`matrix_regression_loss`.

    Example:
        >>> import torch, torch_rescaled
        >>> A1, A2, B = torch.randn(100, 5), torch.randn(80, 6), torch.rand(100, 80).softmax(-1)
        >>> log_loss, gradient, log_scale = torch_rescaled.matrix_regression_evaluate(A1, 9 * torch.ones(5, 6), A2, B)
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        tensors = {"A1": A1, "X": X, "A2": A2, "B": B, "attn_mask": attn_mask, "teacher_query": teacher_query}
        tensors |= {"teacher_key": teacher_key, "crow_indices": crow_indices, "col_indices": col_indices, "values": values}
        _check("matrix_regression_evaluate", tensors)
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.torch_rescaled.matrix_regression_evaluate(
        A1, X, A2, B, attn_mask=attn_mask, is_causal=is_causal, regularization=regularization, kind=kind, form=form,
        teacher_query=teacher_query, teacher_key=teacher_key, teacher_kind=teacher_kind, crow_indices=crow_indices,
        col_indices=col_indices, values=values,
    )  # fmt: skip
    return result


def matrix_regression_hvp(
    A1: Tensor,
    X: Tensor,
    A2: Tensor,
    B: Tensor | None,
    V: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    regularization: float = 0.0,
    kind: str = "exp",
    form: str = "rescaled",
    curvature: str = "full",
    teacher_query: Tensor | None = None,
    teacher_key: Tensor | None = None,
    teacher_kind: str = "exp",
    crow_indices: Tensor | None = None,
    col_indices: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    r"""The product of the Hessian in X, or its Gauss-Newton part, with V.

    Args:
        A1, X, A2, B, attn_mask, is_causal, regularization, kind, form, teacher_query, teacher_key, teacher_kind, crow_indices,
            col_indices, values: as in :func:`matrix_regression_loss`.
        V: ``[*, d1, d2]``, of X's dtype.
        curvature: ``"full"``, or ``"gauss_newton"``, which is positive semidefinite.

    Returns:
        ``[*, d1, d2]`` in X's dtype.

    Not differentiable: backward raises; second derivatives of :func:`matrix_regression_loss` are differentiable Hessian products.

    Raises: as :func:`matrix_regression_loss`, and ValueError for another ``curvature`` or V's shape.

    Example:
        >>> import torch, torch_rescaled
        >>> A1, A2, B = torch.randn(100, 5), torch.randn(80, 6), torch.rand(100, 80).softmax(-1)
        >>> X, V = torch.zeros(5, 6), torch.randn(5, 6)
        >>> product = torch_rescaled.matrix_regression_hvp(A1, X, A2, B, V, form="normalized", curvature="gauss_newton")
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        tensors = {"A1": A1, "X": X, "A2": A2, "B": B, "V": V, "attn_mask": attn_mask, "teacher_query": teacher_query}
        tensors |= {"teacher_key": teacher_key, "crow_indices": crow_indices, "col_indices": col_indices, "values": values}
        _check("matrix_regression_hvp", tensors)
    found: Tensor = torch.ops.torch_rescaled.matrix_regression_hvp(
        A1, X, A2, B, V, attn_mask=attn_mask, is_causal=is_causal, regularization=regularization, kind=kind, form=form,
        curvature=curvature, teacher_query=teacher_query, teacher_key=teacher_key, teacher_kind=teacher_kind,
        crow_indices=crow_indices, col_indices=col_indices, values=values,
    )  # fmt: skip
    return found
