# SPDX-License-Identifier: BSD-3-Clause
"""The regression operators as typed, documented functions."""

import torch
from torch import Tensor

from torch_rescaled import _library as _library
from torch_rescaled._inputs import check_readable, components, design

__all__ = ["newton_step", "regression_evaluate", "regression_hvp", "regression_loss"]

# TorchScript compiles these functions, and knows no keyword-only arguments with defaults: all stay positional.


@torch.jit.unused
def _given(op: str, A: Tensor, b: Tensor, x: Tensor, row_weight: Tensor | None, penalty_weight: Tensor | None) -> Tensor:
    for name, tensor in {"b": b, "x": x, "row_weight": row_weight, "penalty_weight": penalty_weight}.items():
        if tensor is not None:
            check_readable(op, name, tensor)
    return design(op, A)


def regression_loss(
    A: Tensor,
    b: Tensor,
    x: Tensor,
    row_weight: Tensor | None = None,
    penalty_weight: Tensor | None = None,
    kind: str = "exp",
    form: str = "rescaled",
) -> Tensor:
    r"""The loss of :math:`u(A x)` against b, with u = exp, cosh or sinh; value and gradient in one read of A.

    * ``form="rescaled"``: :math:`\frac12 \sum_i \omega_i (u(Ax) - \langle u(Ax), 1 \rangle b)_i^2`
    * ``form="normalized"``: :math:`\frac12 \sum_i \omega_i (u(Ax) / \langle u(Ax), 1 \rangle - b)_i^2`; softmax regression for exp
    * ``form="plain"``: :math:`\frac12 \sum_i \omega_i (u(Ax) - b)_i^2`; for exp a Gaussian model with log link

    plus :math:`\frac12 \| \mathrm{diag}(w) A x \|^2`, with :math:`\omega` the ``row_weight`` and w the ``penalty_weight``.

    Args:
        A: ``[*, n, d]``; float32, float64, bfloat16 or float16 (read as it is, float32 arithmetic); any strides. Or sparse: a
            ``torch.sparse_csr`` tensor or a ``scipy.sparse`` matrix; what occurs twice is added, indices may come in any order.
            For derivatives in its values, under ``torch.func``, ``torch.compile`` and in TorchScript pass the components to
            ``torch.ops.torch_rescaled.regression_loss_csr(crow_indices, col_indices, values, n_columns, b, x, ...)``.
        b: ``[*, n]``; float32, float64 for a float64 A. Leading dimensions broadcast.
        x: ``[*, d]``, of b's dtype.
        row_weight: :math:`\omega`, ``[*, n]``, 1 by default.
        penalty_weight: w, ``[*, n]``, 0 by default.
        kind: ``"exp"``, ``"cosh"`` or ``"sinh"``.
        form: ``"rescaled"``, ``"normalized"`` or ``"plain"``.

    Returns:
        ``[*]`` in b's dtype; inf where the loss is not representable (rescaled and plain, in float32 from :math:`\max |A x|` of
        about 44): :func:`regression_evaluate` gives its logarithm. For sinh the normalized form has a pole where the sum
        vanishes.

    Differentiable in A, b, x and the weights: reverse, forward, second order and, by formulas that PyTorch differentiates, third.
    The gradient in x and Hessian products in x take one read of A (two of a sparse one with more than 1024 or 512 columns);
    derivatives in A have the size of A. Under autocast b, x and
    the weights are float32.

    Raises:
        ValueError: shapes, devices, ``kind`` or ``form`` do not fit.
        TypeError: a dtype does not fit, or an argument is a tensor subclass.
        NotImplementedError: tensors on a device without kernels, or nested tensors.

    Example:
        >>> import torch, torch_rescaled
        >>> A, b = torch.randn(100, 5), torch.rand(100) / 100
        >>> x = torch.zeros(5, requires_grad=True)
        >>> torch_rescaled.regression_loss(A, b, x, form="normalized").backward()

    Source: arXiv:2305.00660 (rescaled), arXiv:2304.10411 (normalized), arXiv:2303.15725 (plain, and the penalty).
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        A = _given("regression_loss", A, b, x, row_weight, penalty_weight)
        if A.layout == torch.sparse_csr:
            of_csr: Tensor = torch.ops.torch_rescaled.regression_loss_csr(
                *components(A), b, x, row_weight=row_weight, penalty_weight=penalty_weight,
                kind=kind, form=form,
            )  # fmt: skip
            return of_csr
    loss: Tensor = torch.ops.torch_rescaled.regression_loss(
        A, b, x, row_weight=row_weight, penalty_weight=penalty_weight, kind=kind, form=form
    )
    return loss


def regression_evaluate(
    A: Tensor,
    b: Tensor,
    x: Tensor,
    row_weight: Tensor | None = None,
    penalty_weight: Tensor | None = None,
    kind: str = "exp",
    form: str = "rescaled",
    curvature: str = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Loss, gradient and Hessian in x with their scale taken out: finite however large the loss is.

    Args:
        A, b, x, row_weight, penalty_weight, kind, form: as in :func:`regression_loss`.
        curvature: ``"none"``; ``"gauss_newton"``, positive semidefinite; ``"clipped"``, the same plus the positive part of the
            remaining diagonal; ``"full"``. A is read once without one, and for ``"gauss_newton"`` without a penalty up to 512
            columns; otherwise twice.

    Returns:
        ``(log_loss [*], gradient [*, d], hessian [*, d, d], log_scale [*])`` in b's dtype: the gradient of the loss is
        ``exp(log_scale) * gradient``, the Hessian likewise (an empty ``[*, 0, 0]`` without curvature). A Newton step needs neither
        scale: ``-torch.linalg.solve(hessian, gradient)``. Finite for :math:`\max |A x|` up to 600 in float64, 300 in float32.

    Not differentiable: backward raises; differentiate :func:`regression_loss`.

    Raises: as :func:`regression_loss`, and ValueError for another ``curvature``.

    Example:
        >>> import torch, torch_rescaled
        >>> A, b, x = torch.randn(100, 5), torch.rand(100) / 100, torch.full((5,), 50.0)
        >>> log_loss, gradient, hessian, log_scale = torch_rescaled.regression_evaluate(A, b, x, curvature="full")
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        A = _given("regression_evaluate", A, b, x, row_weight, penalty_weight)
        if A.layout == torch.sparse_csr:
            of_csr: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.torch_rescaled.regression_evaluate_csr(
                *components(A), b, x, row_weight=row_weight, penalty_weight=penalty_weight,
                kind=kind, form=form, curvature=curvature,
            )  # fmt: skip
            return of_csr
    result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.torch_rescaled.regression_evaluate(
        A, b, x, row_weight=row_weight, penalty_weight=penalty_weight, kind=kind, form=form, curvature=curvature
    )
    return result


def regression_hvp(
    A: Tensor,
    b: Tensor,
    x: Tensor,
    v: Tensor,
    row_weight: Tensor | None = None,
    penalty_weight: Tensor | None = None,
    kind: str = "exp",
    form: str = "rescaled",
    curvature: str = "full",
) -> Tensor:
    r"""The product of the Hessian in x, or its Gauss-Newton part, with v: one read of A.

    Args:
        A, b, x, row_weight, penalty_weight, kind, form: as in :func:`regression_loss`.
        v: ``[*, d]``, of b's dtype.
        curvature: ``"full"``, ``"gauss_newton"``, or ``"clipped"`` (three reads of A), as in :func:`regression_evaluate`.

    Returns:
        ``[*, d]`` in b's dtype.

    Not differentiable: backward raises; second derivatives of :func:`regression_loss` are differentiable Hessian products.

    Raises: as :func:`regression_evaluate`.

    Example:
        >>> import torch, torch_rescaled
        >>> A, b, x = torch.randn(100, 5), torch.rand(100) / 100, torch.randn(5)
        >>> product = torch_rescaled.regression_hvp(A, b, x, torch.ones(5), form="normalized")
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        A = _given("regression_hvp", A, b, x, row_weight, penalty_weight)
        check_readable("regression_hvp", "v", v)
        if A.layout == torch.sparse_csr:
            of_csr: Tensor = torch.ops.torch_rescaled.regression_hvp_csr(
                *components(A), b, x, v, row_weight=row_weight, penalty_weight=penalty_weight,
                kind=kind, form=form, curvature=curvature,
            )  # fmt: skip
            return of_csr
    product: Tensor = torch.ops.torch_rescaled.regression_hvp(
        A, b, x, v, row_weight=row_weight, penalty_weight=penalty_weight, kind=kind, form=form, curvature=curvature
    )
    return product


def newton_step(
    A: Tensor,
    b: Tensor,
    x: Tensor,
    row_weight: Tensor | None = None,
    penalty_weight: Tensor | None = None,
    kind: str = "exp",
    form: str = "rescaled",
    curvature: str = "gauss_newton",
    damping: float = 0.0,
) -> Tensor:
    r"""One damped Newton step :math:`-(H + \lambda\, \mathrm{diag} |H|)^{-1} g`, at any size of the loss.

    Args:
        A, b, x, row_weight, penalty_weight, kind, form: as in :func:`regression_loss`.
        curvature: H: ``"gauss_newton"``, ``"clipped"`` or ``"full"``; an indefinite H is shifted until it is not.
        damping: :math:`\lambda \ge 0`, relative to H's diagonal.

    Returns:
        ``[*, d]`` in b's dtype, to be added to x. Where H is singular to rounding, the step leaves its null space out; where
        there is no step at all (H is 0 or not finite) it is 0.

    Not differentiable. It looks at H on the host: not inside a compiled graph.

    Raises: as :func:`regression_evaluate`, and ValueError for a negative ``damping``.

    Example:
        >>> import torch, torch_rescaled
        >>> A, b, x = torch.randn(100, 5), torch.rand(100) / 100, torch.randn(5)
        >>> x = x + torch_rescaled.newton_step(A, b, x, form="normalized", damping=1e-3)
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        A = _given("newton_step", A, b, x, row_weight, penalty_weight)
        if A.layout == torch.sparse_csr:
            of_csr: Tensor = torch.ops.torch_rescaled.newton_step_csr(
                *components(A), b, x, row_weight=row_weight, penalty_weight=penalty_weight,
                kind=kind, form=form, curvature=curvature, damping=damping,
            )  # fmt: skip
            return of_csr
    step: Tensor = torch.ops.torch_rescaled.newton_step(
        A, b, x, row_weight=row_weight, penalty_weight=penalty_weight, kind=kind, form=form, curvature=curvature, damping=damping
    )
    return step
