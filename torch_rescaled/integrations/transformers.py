# SPDX-License-Identifier: BSD-3-Clause
"""Attention implementations for Hugging Face's transformers."""

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_rescaled._inputs import KINDS
from torch_rescaled.functional import attention

# What models pass to an implementation and this one cannot honor. (Windows come as a mask.)
UNSUPPORTED = ("softcap", "s_aux", "head_mask", "output_attentions")


def register() -> tuple[str, ...]:
    """Makes ``attn_implementation="rescaled_exp"`` (``_cosh``, ``_sinh``, ``_signed``) known to transformers.

    Registers the attention, and the boolean masks that go with it: padding, causal, sliding windows, packed sequences. Models then
    run :func:`torch_rescaled.attention` in training (dropout too) and in generation, with grouped queries, caches and position
    biases; a position bias or a floating mask is the logarithm of the key's weight. Calling it again changes nothing.

    Set it with ``model.set_attn_implementation(name)``, which warns and leaves a model that computes its attention itself, not
    through transformers' ``AttentionInterface``. The constructor's argument accepts every model.

    Returns:
        the four names.

    Raises:
        ImportError: transformers is not installed, or too old (needs 5.0: ``pip install torch_rescaled[transformers]``).

    The attention raises NotImplementedError for soft caps, attention sinks, head masks and ``output_attentions``, which it does not
    have, and so does the mask for a model that computes its attention itself.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from torch_rescaled.integrations import transformers
        >>> transformers.register()
        ('rescaled_exp', 'rescaled_cosh', 'rescaled_sinh', 'rescaled_signed')
        >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> model = LlamaForCausalLM(config)
        >>> model.set_attn_implementation("rescaled_cosh")
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            "torch_rescaled.integrations.transformers: expected transformers >= 5 to be installed "
            "(pip install torch_rescaled[transformers])"
        ) from error
    names = tuple(f"rescaled_{kind}" for kind in KINDS)
    for name, kind in zip(names, KINDS, strict=True):
        AttentionInterface.register(name, partial(_attention, kind))
        # Without masks of the same name transformers drops padding without a word.
        AttentionMaskInterface.register(name, partial(_mask, name))
    return names


def _attention(
    kind: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' calling convention: query [B, H, N, D], key and value [B, Hk, M, D] -> [B, N, H, D], no weights."""
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise NotImplementedError(f"rescaled_{kind}: expected no {name}, got {_short(kwargs[name])}; 'eager' may have it")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    # A mask contains what is causal; a single query is the last one. The length comes first for torch.compile's dynamic shapes.
    is_causal = query.shape[2] > 1 and attention_mask is None and is_causal
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[2]]
    if position_bias is not None:
        attention_mask = _biased(position_bias, attention_mask)
    gqa = key.shape[1] != query.shape[1]
    output = attention(query, key, value, attention_mask, dropout, bool(is_causal), scaling, gqa, kind)
    return output.transpose(1, 2).contiguous(), None


def _biased(position_bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return position_bias
    return position_bias.masked_fill(mask.logical_not(), float("-inf")) if mask.dtype == torch.bool else position_bias + mask


def _mask(name: str, *args: Any, **kwargs: Any) -> Tensor | None:
    """The masks of transformers' sdpa, which are attention's: boolean, True attends, None where is_causal says it all."""
    from transformers.masking_utils import sdpa_mask

    config = kwargs.get("config")
    if config is not None and not torch.compiler.is_compiling() and _computes_itself(type(config)):
        raise NotImplementedError(
            f"{name}: expected a model whose attention goes through transformers' AttentionInterface, got a {config.model_type}, "
            "which computes softmax itself"
        )
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def _computes_itself(config: type) -> bool:
    """Whether the modeling module of this configuration has attention layers but not transformers' interface."""
    modeling = sys.modules.get(config.__module__.replace(".configuration_", ".modeling_"))
    if modeling is None or hasattr(modeling, "ALL_ATTENTION_FUNCTIONS"):
        return False
    return any(
        "Attention" in name and isinstance(x, type) and x.__module__ == modeling.__name__ for name, x in vars(modeling).items()
    )


def _short(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
