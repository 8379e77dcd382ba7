# SPDX-License-Identifier: BSD-3-Clause
"""The attention losses as typed, documented functions."""

import torch
from torch import Tensor

from torch_rescaled import _library as _library
from torch_rescaled.functional import _check_readable, _resolve

__all__ = ["attention_loss"]

# TorchScript compiles this function, and knows no keyword-only arguments with defaults: all stay positional.


def attention_loss(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    target: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    kind: str = "exp",
    form: str = "rescaled",
    log_row_scale: Tensor | None = None,
    reduction: str = "sum",
    log: bool = False,
) -> Tensor:
    r"""How far attention is from a target, with the weights' normalizer multiplied through or divided out.

    With :math:`U = e^{\beta} \phi(\tau Q K^T)`, :math:`V` the values, :math:`B` the target and :math:`D = \mathrm{diag}(U 1)`:

    * ``form="rescaled"``: :math:`\frac12 \| E^{-1} (U V - D B) \|_F^2` with :math:`E = \mathrm{diag}(e^{t})`, t the
      ``log_row_scale`` (0 by default). No pole anywhere, also where a sum of sinh vanishes. It weighs a row by the square of its
      normalizer, about :math:`e^{2 l}`, and it has minima of no interest: see the notes.
    * ``form="normalized"``: :math:`\frac12 \| D^{-1} U V - B \|_F^2`. Every row counts alike. For ``"sinh"`` it has a pole where
      a row's sum vanishes.

    Args:
        query: ``[*, H, N, D]``; float32, float64, bfloat16 or float16.
        key: ``[*, Hk, M, D]``; value: ``[*, Hk, M, Dv]``, as in :func:`torch_rescaled.attention`.
        target: B, broadcasts to ``[*, H, N, Dv]``; query's dtype, or float32 with half precision.
        attn_mask, is_causal, scale, enable_gqa: as in :func:`torch_rescaled.attention`.
        kind: ``"exp"``, ``"cosh"``, ``"sinh"`` or ``"signed"``; for the last, D has the sums of cosh and U the sinh.
        form: ``"rescaled"`` or ``"normalized"``.
        log_row_scale: t, broadcasts to ``[*, H, N]``; query's dtype, or float32 with half precision. For instance the
            detached ``log_normalizer`` of a first model, which gives the rows equal weight at the start. Rescaled form only.
        reduction: ``"none"`` (a loss per row, ``[*, H, N]``), ``"sum"``, or ``"mean"`` over the rows.
        log: return the logarithm of what the reduction gives: finite where the rescaled loss is not representable, which is inf
            otherwise (in float32 from a log normalizer of about 44). -inf, with gradient 0, where the loss is 0.

    Returns:
        A number, or ``[*, H, N]``; float32 (float64 for float64), under autocast too. A row without keys has attention 0: its
        loss is 0 in the rescaled form and half the square of the target in the normalized one.

    Differentiable in query, key, value, target, a floating ``attn_mask`` and ``log_row_scale``, to second order in O(N D)
    memory, as :func:`torch_rescaled.attention` is.

    Raises:
        ValueError: shapes, devices, ``kind``, ``form`` or ``reduction`` do not fit; ``log_row_scale`` with the normalized form;
            float16 in the rescaled form with neither ``log_row_scale`` nor ``log``.
        TypeError: a dtype does not fit, or an argument is a tensor subclass.
        NotImplementedError: tensors on a device without kernels, or nested tensors.

    Notes:
        The rescaled form can be made small by making :math:`U` small instead of by fitting: with exp, scores that run off to
        :math:`-\infty` (:math:`L(s - t) = e^{-2t} L(s)` for a shift t of all scores), with sinh, query or key 0, a global
        minimum with loss 0. Start it near a fit, fix the scale by ``log_row_scale`` given as a constant, or use the normalized
        form; ``examples/distil_layer.py`` shows the difference.

    Example:
        >>> import torch, torch_rescaled
        >>> q, k, v = (torch.randn(2, 4, 16, 8, requires_grad=True) for _ in range(3))
        >>> target = torch.randn(2, 4, 16, 8)
        >>> torch_rescaled.attention_loss(q, k, v, target, form="normalized", reduction="mean").backward()
        >>> log_loss = torch_rescaled.attention_loss(q, k, v, target, kind="cosh", log=True)

    Source: the rows of the rescaled form are arXiv:2305.00660's :math:`\frac12 \| u(A x) - \langle u(A x), 1 \rangle b \|^2`
    with a matrix of values beside u, with that paper's factor 1/2; the matrix forms are those of arXiv:2307.02419. The normalized
    form, summed, is half the loss L(X, Y) of arXiv:2309.07418, which has no factor 1/2.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        attn_mask, is_causal = _resolve("attention_loss", query, key, value, attn_mask, is_causal)
        _check_readable("attention_loss", "target", target)
        if log_row_scale is not None:
            _check_readable("attention_loss", "log_row_scale", log_row_scale)
    loss: Tensor = torch.ops.torch_rescaled.attention_loss(
        query, key, value, target, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa, kind=kind,
        form=form, log_row_scale=log_row_scale, reduction=reduction, log=log,
    )  # fmt: skip
    return loss
