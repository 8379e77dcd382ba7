# SPDX-License-Identifier: BSD-3-Clause
"""The attention losses as a module."""

from torch import Tensor, nn

from torch_rescaled._inputs import check_kind
from torch_rescaled.losses import attention_loss


class AttentionLoss(nn.Module):
    r"""Distance of attention from a target: :func:`torch_rescaled.attention_loss` with its settings fixed.

    Args:
        kind: ``"exp"``, ``"cosh"``, ``"sinh"`` or ``"signed"``.
        form: ``"rescaled"`` or ``"normalized"``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"`` (over rows).
        is_causal: whether a query attends only to keys up to its own position.
        scale: scale of the scores, ``1 / sqrt(head size)`` by default.
        enable_gqa: grouped queries.
        log: return the logarithm of the loss.

    Shape:
        query ``[*, H, N, D]``, key ``[*, Hk, M, D]``, value ``[*, Hk, M, Dv]``, target ``[*, H, N, Dv]``; attn_mask broadcasts to
        ``[*, H, N, M]``, log_row_scale to ``[*, H, N]``. Output: a number, or ``[*, H, N]`` with reduction ``"none"``.

    Raises:
        ValueError: an unknown kind, form or reduction.

    Example:
        >>> import torch, torch_rescaled
        >>> loss = torch_rescaled.nn.AttentionLoss(kind="cosh", form="normalized", reduction="mean")
        >>> q, k, v, target = (torch.randn(2, 16, 8) for _ in range(4))
        >>> loss(q, k, v, target).shape
        torch.Size([])

    Differentiable as :func:`torch_rescaled.attention_loss` is; scriptable. Source: arXiv:2305.00660, arXiv:2309.07418.
    """

    def __init__(
        self,
        *,
        kind: str = "exp",
        form: str = "rescaled",
        reduction: str = "sum",
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        log: bool = False,
    ) -> None:
        super().__init__()
        check_kind("AttentionLoss", kind)
        for name, given, known in (
            ("form", form, ("rescaled", "normalized")),
            ("reduction", reduction, ("none", "sum", "mean")),
        ):
            if given not in known:
                raise ValueError(
                    f"AttentionLoss: expected {name} {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, got {given!r}"
                )
        self.kind, self.form, self.reduction = kind, form, reduction
        self.is_causal, self.scale, self.enable_gqa, self.log = is_causal, scale, enable_gqa, log

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        target: Tensor,
        attn_mask: Tensor | None = None,
        log_row_scale: Tensor | None = None,
    ) -> Tensor:
        return attention_loss(
            query, key, value, target, attn_mask, self.is_causal, self.scale, self.enable_gqa, self.kind, self.form,
            log_row_scale, self.reduction, self.log,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, form={self.form!r}, reduction={self.reduction!r}, is_causal={self.is_causal}, log={self.log}"
