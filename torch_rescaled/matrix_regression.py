# SPDX-License-Identifier: BSD-3-Clause
"""The matrix regression operators as typed, documented functions."""

import torch
from torch import Tensor

from torch_rescaled import _library as _library
from torch_rescaled._inputs import check_readable

__all__ = ["matrix_regression_evaluate", "matrix_regression_hvp", "matrix_regression_loss"]

# TorchScript compiles these functions, and knows no keyword-only arguments with defaults: all stay positional.


@torch.jit.unused
def _check(op: str, A1: Tensor, X: Tensor, A2: Tensor, B: Tensor, attn_mask: Tensor | None) -> None:
    for name, tensor in {"A1": A1, "X": X, "A2": A2, "B": B, "attn_mask": attn_mask}.items():
        if tensor is not None:
            check_readable(op, name, tensor)


def matrix_regression_loss(
    A1: Tensor,
    X: Tensor,
    A2: Tensor,
    B: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    regularization: float = 0.0,
    kind: str = "exp",
    form: str = "rescaled",
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
        B: ``[*, n1, n2]``, of X's dtype.
        attn_mask: bool, broadcastable to ``[*, n1, n2]``; true where an element takes part. What it hides enters neither the sums
            of u nor the loss, whatever B has there.
        is_causal: row i has the columns 0 to i alone, beside ``attn_mask``.
        regularization: :math:`\lambda \ge 0`.
        kind: ``"exp"``, ``"cosh"`` or ``"sinh"``.
        form: ``"rescaled"``, ``"normalized"`` or ``"plain"``.

    Returns:
        ``[*]`` in X's dtype; inf where the loss is not representable (rescaled and plain, in float32 from logits of about 44):
        :func:`matrix_regression_evaluate` gives its logarithm. A row without elements has loss 0.

    Differentiable in A1, X, A2 and B: reverse, forward, second order and, by formulas that PyTorch differentiates, third. On CPU
    the loss, its gradient in X and A1 and its Hessian products in them walk the map in blocks, with memory for n1 + n2 rows; on
    other devices, and for derivatives in A2 and B, arrays of B's size are formed. Under autocast everything is float32.

    Raises:
        ValueError: shapes, devices, ``kind``, ``form`` or ``regularization`` do not fit.
        TypeError: a dtype does not fit, or an argument is a tensor subclass.
        NotImplementedError: tensors on a device without kernels, or nested tensors.

    Example:
        >>> import torch, torch_rescaled
        >>> A1, A2, B = torch.randn(100, 5), torch.randn(80, 6), torch.rand(100, 80).softmax(-1)
        >>> X = torch.zeros(5, 6, requires_grad=True)
        >>> torch_rescaled.matrix_regression_loss(A1, X, A2, B, form="normalized").backward()

    Source: arXiv:2307.02419 (both forms), arXiv:2305.00660 (u = cosh, sinh).
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        _check("matrix_regression_loss", A1, X, A2, B, attn_mask)
    loss: Tensor = torch.ops.torch_rescaled.matrix_regression_loss(
        A1, X, A2, B, attn_mask=attn_mask, is_causal=is_causal, regularization=regularization, kind=kind, form=form
    )
    return loss


def matrix_regression_evaluate(
    A1: Tensor,
    X: Tensor,
    A2: Tensor,
    B: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    regularization: float = 0.0,
    kind: str = "exp",
    form: str = "rescaled",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Loss and gradient in X with their scale taken out: finite however large the loss is.

    Args:
        A1, X, A2, B, attn_mask, is_causal, regularization, kind, form: as in :func:`matrix_regression_loss`.

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
        _check("matrix_regression_evaluate", A1, X, A2, B, attn_mask)
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.torch_rescaled.matrix_regression_evaluate(
        A1, X, A2, B, attn_mask=attn_mask, is_causal=is_causal, regularization=regularization, kind=kind, form=form
    )
    return result


def matrix_regression_hvp(
    A1: Tensor,
    X: Tensor,
    A2: Tensor,
    B: Tensor,
    V: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    regularization: float = 0.0,
    kind: str = "exp",
    form: str = "rescaled",
    curvature: str = "full",
) -> Tensor:
    r"""The product of the Hessian in X, or its Gauss-Newton part, with V.

    Args:
        A1, X, A2, B, attn_mask, is_causal, regularization, kind, form: as in :func:`matrix_regression_loss`.
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
        _check("matrix_regression_hvp", A1, X, A2, B, attn_mask)
        check_readable("matrix_regression_hvp", "V", V)
    found: Tensor = torch.ops.torch_rescaled.matrix_regression_hvp(
        A1, X, A2, B, V, attn_mask=attn_mask, is_causal=is_causal, regularization=regularization, kind=kind, form=form,
        curvature=curvature,
    )  # fmt: skip
    return found
