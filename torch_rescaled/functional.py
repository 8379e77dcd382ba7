# SPDX-License-Identifier: BSD-3-Clause
"""The operators as typed, documented functions."""

import torch
from torch import Tensor

from torch_rescaled._inputs import check_kind, resolve_mask
from torch_rescaled._library import build_info

__all__ = ["attention", "attention_with_normalizer", "backend"]

# TorchScript compiles these functions, and knows no keyword-only arguments with defaults: scale and what follows stay positional.


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    kind: str = "exp",
) -> Tensor:
    r"""Normalized attention :math:`O = U V / (U 1)` with :math:`U = e^{\beta} \phi(\tau Q K^T)`, every derivative fused.

    Argument for argument :func:`torch.nn.functional.scaled_dot_product_attention`, plus ``kind``:

    * ``"exp"``: softmax attention.
    * ``"cosh"``: softmax attention over the keys :math:`[K; -K]` and values :math:`[V; V]`, at the cost of one.
    * ``"signed"``: the same over :math:`[K; -K]`, :math:`[V; -V]`: weights :math:`\sinh / \sum \cosh`, of either sign, whose
      absolute values sum to at most 1. What a layer with negative weights should use.
    * ``"sinh"``: :math:`\sinh / \sum \sinh`, with a pole where the sum vanishes (see :func:`attention_with_normalizer`).

    Args:
        query: ``[*, H, N, D]``; float32, float64, bfloat16 or float16; any strides, at least 2 dimensions.
        key: ``[*, Hk, M, D]``, of query's dtype. Leading dimensions broadcast; with ``enable_gqa`` Hk divides H.
        value: ``[*, Hk, M, Dv]``.
        attn_mask: broadcasts to ``[*, H, N, M]``. Boolean: True attends. Floating (query's dtype, or float32 with half
            precision): :math:`\beta`, the logarithm of the key's weight, so that -inf, -1e4 and ``finfo.min`` mask for every
            kind. A :class:`torch.nn.attention.bias.CausalBias` is recognized. A row without keys gives 0.
        dropout_p: probability in [0, 1) of dropping a weight.
        is_causal: a query attends to the keys up to its own position, counted from the top left; combines with ``attn_mask``.
        scale: :math:`\tau`, ``1 / sqrt(D)`` by default.
        enable_gqa: grouped queries: H / Hk consecutive query heads share a key head.
        kind: ``"exp"``, ``"cosh"``, ``"signed"`` or ``"sinh"``.

    Returns:
        ``[*, H, N, Dv]`` in query's dtype.

    Differentiable in query, key, value and a floating ``attn_mask``: reverse, forward, reverse over reverse and the mixed second
    derivatives in O(N D) memory; forward over forward and third derivatives by plain-tensor formulas in O(N M), with a warning.
    Under autocast it runs in the autocast dtype.

    Raises:
        ValueError: shapes, devices, ``dropout_p`` or ``kind`` do not fit.
        TypeError: a dtype does not fit, or an argument is a tensor subclass (its storage may be uninitialized).
        NotImplementedError: tensors on a device without kernels, nested (packed) tensors, a
            :class:`torch.nn.attention.flex_attention.BlockMask` (a sliding window is a boolean ``attn_mask`` here), or more than 8
            leading dimensions larger than 1.

    Example:
        >>> import torch, torch_rescaled
        >>> q, k, v = (torch.randn(2, 4, 16, 8, requires_grad=True) for _ in range(3))
        >>> out = torch_rescaled.attention(q, k, v, is_causal=True, kind="signed")
        >>> (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        >>> grad.square().sum().backward()  # through the fused double backward
        >>> q.grad.shape
        torch.Size([2, 4, 16, 8])

    Source: the attention :math:`D^{-1} \exp(Q K^T) V` of arXiv:2309.07418 (matrix form: arXiv:2307.02419), with the functions
    :math:`\phi \in \{\exp, \cosh, \sinh\}` of arXiv:2305.00660.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        attn_mask, is_causal = resolve_mask("attention", query, key, value, attn_mask, is_causal)
    output: Tensor = torch.ops.torch_rescaled.attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa, kind=kind
    )
    return output


def attention_with_normalizer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    kind: str = "exp",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The core of every attention here, with a normalizer that is always positive.

    With :math:`c = \sum_j e^{\beta_j} \exp(s_j)` (exp) or :math:`\sum_j e^{\beta_j} \cosh(s_j)` (cosh, sinh) a row's
    normalizer, returns :math:`W = U V / c`, the balance :math:`\rho = U 1 / c` and :math:`l = \log c`. From them follow
    normalized attention :math:`W / \rho`, and rescaled losses :math:`\|U V - (U 1) \circ B\|^2 = \sum e^{2 l} |W - \rho B|^2`,
    which have no pole where a sum of sinh vanishes.

    Args: those of :func:`attention` (``"signed"`` is ``"sinh"`` here). Dropout acts on :math:`W` alone.

    Returns:
        output: W, ``[*, H, N, Dv]`` in query's dtype.
        balance: ``[*, H, N]``, float32 (float64 for float64): 1 for exp and cosh, in [-1, 1] for sinh, 0 for a row without keys.
        log_normalizer: ``[*, H, N]``, likewise; -inf for a row without keys.

    All three are differentiable, as :func:`attention` is. Raises what :func:`attention` raises.

    Example:
        >>> import torch, torch_rescaled
        >>> q, k, v = (torch.randn(3, 16, 8) for _ in range(3))
        >>> output, balance, log_normalizer = torch_rescaled.attention_with_normalizer(q, k, v, kind="sinh")
        >>> bool((balance.abs() <= 1).all())
        True

    Source: the rescaled loss of arXiv:2305.00660, :math:`\| u(x) - \langle u(x), 1 \rangle b \|^2`, for the rows of the matrix
    form of arXiv:2307.02419.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        attn_mask, is_causal = resolve_mask("attention_with_normalizer", query, key, value, attn_mask, is_causal)
    output, balance, log_normalizer = torch.ops.torch_rescaled.attention_with_normalizer(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa, kind=kind
    )
    return output, balance, log_normalizer


def backend(query: Tensor, kind: str = "exp", family: str = "attention") -> str:
    """The path that :func:`attention` takes for tensors like ``query``, or that another family of operators does.

    Args:
        query: Any tensor on the device in question.
        kind: Of the attention; every kind takes the same path.
        family: Kernels are verified on GPUs by family: ``"attention"``, ``"regression"``, ``"regression_csr"`` (a sparse A) or
            ``"matrix_regression"``.

    Returns:
        ``"cpu:avx512"``, ``"cpu:avx2"``, ``"cpu:baseline"``: fused kernels for that instruction set; ``"cuda:9.0"`` and the like:
        fused kernels on a GPU of that compute capability; ``"plain"``: plain-tensor formulas (attention's in O(N M) memory), on
        GPUs on which no recorded run has verified the family's kernels; ``"meta"`` for meta tensors.

    Raises:
        NotImplementedError: no kernels for this device.

    Example:
        >>> import torch, torch_rescaled
        >>> torch_rescaled.backend(torch.empty(1, 1)).split(":")[0]
        'cpu'
    """
    check_kind("torch_rescaled.backend", kind)
    if family not in ("attention", "regression", "regression_csr", "matrix_regression"):
        raise ValueError(
            "torch_rescaled.backend: expected family 'attention', 'regression', 'regression_csr' or 'matrix_regression', got "
            f"{family!r}"
        )
    if query.device.type == "cpu":
        return f"cpu:{build_info()['cpu_isa']}"
    if query.device.type == "meta":
        return "meta"
    if query.device.type == "cuda":
        path: str = torch.ops.torch_rescaled._cuda_path(query.device.index, family)
        return path
    raise NotImplementedError(f"torch_rescaled.backend: expected a tensor on the CPU or CUDA (or meta), got one on {query.device}")
