# SPDX-License-Identifier: BSD-3-Clause
"""torch's attention layers in a model, replaced by this package's."""

from dataclasses import dataclass

import torch
from torch import nn

from torch_rescaled._inputs import check_kind
from torch_rescaled.nn.multihead import MultiheadAttention


@dataclass(frozen=True)
class Replacements:
    """What :func:`replace_attention` did; ``str`` of it is a readable list.

    Attributes:
        kind: of the new layers.
        replaced: names of the replaced layers; a layer with several names has all of them here.
        left: names of attention layers that were left as they are, each with the reason.
        without_nested_tensors: names of the :class:`torch.nn.TransformerEncoder` whose ``use_nested_tensor`` was switched off.
    """

    kind: str
    replaced: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    without_nested_tensors: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"replaced by MultiheadAttention of kind {self.kind!r}: {len(self.replaced)}"]
        lines += [f"  {name}" for name in self.replaced]
        if self.left:
            lines += [f"left as they are: {len(self.left)}", *(f"  {name}: {why}" for name, why in self.left)]
        if self.without_nested_tensors:
            lines.append(f"use_nested_tensor switched off: {len(self.without_nested_tensors)}")
            lines += [f"  {name or 'the model itself'}" for name in self.without_nested_tensors]
        return "\n".join(lines)


def replace_attention(model: nn.Module, kind: str = "exp") -> Replacements:
    """Replaces every :class:`torch.nn.MultiheadAttention` in ``model``, in place, by :class:`MultiheadAttention` of this ``kind``.

    Also inside :class:`torch.nn.TransformerEncoderLayer`, :class:`torch.nn.TransformerDecoderLayer` and
    :class:`torch.nn.Transformer`. The new layers hold the very same parameters, so that an optimizer made before goes on, and
    keep hooks, settings and training mode; a layer shared under several names stays shared. Left as they are, and reported:
    subclasses (they may compute something else; quantized and parametrized layers are such), layers with a forward set or
    compiled on the instance, and what TorchScript compiled.

    Layers are found as submodules: a reference kept elsewhere (in a list, say) goes on naming torch's.

    Args:
        model: any module that is not itself an attention layer.
        kind: ``"exp"``, ``"cosh"``, ``"sinh"`` or ``"signed"``. With ``"exp"`` the model computes what it did, now with second
            derivatives; another kind on weights that were trained for softmax is another model.

    Returns:
        a :class:`Replacements`.

    Raises:
        ValueError: ``kind`` is unknown, or ``model`` itself is a :class:`torch.nn.MultiheadAttention`, which nothing holds; nothing
            is changed then.

    Example:
        >>> import torch, torch_rescaled
        >>> model = torch.nn.TransformerEncoderLayer(32, 4, batch_first=True)
        >>> print(torch_rescaled.nn.replace_attention(model, kind="signed"))
        replaced by MultiheadAttention of kind 'signed': 1
          self_attn
    """
    check_kind("replace_attention", kind)
    if isinstance(model, nn.MultiheadAttention):
        raise ValueError(
            "replace_attention: expected a model that contains torch.nn.MultiheadAttention, got one itself; "
            "MultiheadAttention.from_torch(module, kind) returns its replacement"
        )
    new: dict[nn.Module, MultiheadAttention] = {}
    replaced: list[str] = []
    left: list[tuple[str, str]] = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        parent, _, attribute = name.rpartition(".")
        if isinstance(module, torch.jit.ScriptModule):
            if getattr(module, "original_name", None) == "MultiheadAttention":
                left.append((name, "compiled by TorchScript: replace first, then compile"))
        elif isinstance(module, MultiheadAttention):
            left.append((name, f"of this package already, kind {module.kind!r}"))
        elif isinstance(module, nn.MultiheadAttention) and attribute == "_orig_mod":
            left.append((name, "compiled by torch.compile, which holds on to it: replace first, then compile"))
        elif isinstance(module, nn.MultiheadAttention):
            try:
                if module not in new:
                    new[module] = MultiheadAttention.from_torch(module, kind)
            except (TypeError, ValueError) as error:
                left.append((name, str(error)))
            else:
                setattr(model.get_submodule(parent), attribute, new[module])
                replaced.append(name)
    return Replacements(kind, tuple(replaced), tuple(left), _without_nested_tensors(model))


def _without_nested_tensors(model: nn.Module) -> tuple[str, ...]:
    """Encoders decide when they are made whether to pack padded batches into nested tensors, which torch's layer alone reads."""
    names = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.TransformerEncoder) or not module.use_nested_tensor:
            continue
        if any(isinstance(layer, MultiheadAttention) for layer in module.modules()):
            module.use_nested_tensor = False
            names.append(name)
    return tuple(names)
