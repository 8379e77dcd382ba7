# SPDX-License-Identifier: BSD-3-Clause
"""torch.nn.MultiheadAttention with exp, cosh, sinh or signed weights."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_rescaled._inputs import check_kind
from torch_rescaled.functional import attention, attention_with_normalizer


class MultiheadAttention(nn.MultiheadAttention):
    r""":class:`torch.nn.MultiheadAttention` around :func:`torch_rescaled.attention`: its arguments, its parameters, plus ``kind``.

    The same ``state_dict``, loaded both ways, and with kind ``"exp"`` the same numbers, from the same seed on. What differs:

    * Every derivative that :func:`torch_rescaled.attention` has, also inside a :class:`torch.nn.TransformerEncoderLayer`, whose
      inference path of its own (softmax, without calling this layer) stays unused. A :class:`torch.nn.TransformerEncoder` built
      around such a layer therefore warns that it does not use nested tensors.
    * A floating mask is the logarithm of the key's weight: for kind ``"exp"`` the same as added to the score, and for the other
      kinds what makes -inf, -1e4 and ``finfo.min`` mask.
    * A query without keys gets zeros (and the output projection's bias); torch's gives NaN where the weights are asked for.
    * ``is_causal`` needs no ``attn_mask``.

    As torch's, it returns the weights unless told not to: the kind's normalized weights, the one path here in O(N M) memory. Pass
    ``need_weights=False`` where they are not looked at.

    Args:
        embed_dim: size of queries and outputs, divisible by ``num_heads``.
        num_heads: heads.
        dropout: probability in [0, 1) of dropping an attention weight in training.
        bias: whether the projections have biases.
        add_bias_kv: whether one learned key and value follow the others, which no mask reaches.
        add_zero_attn: whether a zero key and value do.
        kdim, vdim: sizes of keys and values, ``embed_dim`` by default.
        batch_first: whether batched inputs are ``[B, length, size]`` rather than ``[length, B, size]``.
        device, dtype: of the parameters.
        kind: ``"exp"``, ``"cosh"``, ``"sinh"`` or ``"signed"``.

    Raises:
        ValueError: sizes that do not divide, ``dropout`` or ``kind`` out of range; in a call, shapes that do not fit.
        TypeError: a mask is neither boolean nor floating.
        NotImplementedError: a nested tensor.

    Example:
        >>> import torch, torch_rescaled
        >>> layer = torch_rescaled.nn.MultiheadAttention(32, 4, batch_first=True, kind="cosh")
        >>> x = torch.randn(2, 10, 32)
        >>> output, weights = layer(x, x, x, need_weights=False)
        >>> output.shape, weights
        (torch.Size([2, 10, 32]), None)

    Differentiable as :func:`torch_rescaled.attention` is; scriptable.

    Source: arXiv:1706.03762 around the attention of arXiv:2309.07418 and arXiv:2305.00660.
    """

    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        kind: str = "exp",
    ) -> None:
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ValueError(f"MultiheadAttention: expected embed_dim divisible by num_heads, got {embed_dim} and {num_heads}")
        _check_dropout(dropout)
        check_kind("MultiheadAttention", kind)
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device=device, dtype=dtype
        )
        self.kind = kind
        self._refuse_fast_path()

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention, kind: str = "exp") -> "MultiheadAttention":
        """This layer with the very parameters, hooks, settings and training mode of torch's ``module``, which stays as it is.

        Raises:
            TypeError: ``module`` is not a :class:`torch.nn.MultiheadAttention` itself (a subclass may compute something else), or
                has a forward of its own, set or compiled on the instance.
            ValueError: ``kind`` is unknown, or ``module.dropout`` is not in [0, 1).

        Example:
            >>> import torch, torch_rescaled
            >>> theirs = torch.nn.MultiheadAttention(32, 4)
            >>> ours = torch_rescaled.nn.MultiheadAttention.from_torch(theirs, kind="signed")
            >>> ours.in_proj_weight is theirs.in_proj_weight
            True
        """
        if type(module) is not nn.MultiheadAttention:
            raise TypeError(f"MultiheadAttention: expected a torch.nn.MultiheadAttention, got {_class_name(module)}")
        for name in ("forward", "_compiled_call_impl"):
            if module.__dict__.get(name) is not None:
                raise TypeError(f"MultiheadAttention: expected a module with the forward of its class, got one with its own {name}")
        _check_dropout(module.dropout)
        check_kind("MultiheadAttention", kind)
        layer = cls.__new__(cls)
        # The dictionaries of parameters and hooks are shared, so that a handle of a hook still removes it.
        layer.__dict__.update(module.__dict__)
        layer.kind = kind
        layer._refuse_fast_path()
        return layer

    def _refuse_fast_path(self) -> None:
        # In evaluation without gradients torch.nn.TransformerEncoderLayer computes softmax attention itself from the weights of
        # self_attn. Of what it asks of self_attn first, this alone is no setting of the user's and no parameter.
        self._qkv_same_embed_dim = False

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._refuse_fast_path()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        r"""Multi-head attention; lengths N of queries and M of keys, batch B; without B in every shape for unbatched inputs.

        Args:
            query: ``[N, B, embed_dim]``, or ``[B, N, embed_dim]`` with ``batch_first``.
            key: ``[M, B, kdim]`` or ``[B, M, kdim]``.
            value: ``[M, B, vdim]`` or ``[B, M, vdim]``.
            key_padding_mask: ``[B, M]``. Boolean: True does NOT attend. Floating: the logarithm of the key's weight.
            need_weights: whether the weights are returned. This is the one path in O(N M) memory and without the fused
                derivatives: pass False where they are not looked at.
            attn_mask: ``[N, M]`` or ``[B * num_heads, N, M]``, likewise; the two masks may differ in dtype.
            average_attn_weights: whether the weights are averaged over the heads.
            is_causal: a query attends to the keys up to its own position. As torch's, it says what ``attn_mask`` contains, which
                is then not read.

        Returns:
            output: like query.
            weights: None without ``need_weights``; ``[B, N, M]`` averaged, else ``[B, num_heads, N, M]``, with a column more for
                ``add_bias_kv`` and for ``add_zero_attn``: the kind's normalized weights, those of ``"signed"`` and ``"sinh"`` of
                either sign, after dropout. The output is computed from them.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise NotImplementedError(
                "MultiheadAttention: expected dense tensors, got a nested one; a torch.nn.TransformerEncoder makes one of a padded "
                "batch where its use_nested_tensor is True: set it to False, as replace_attention does"
            )
        _check_shapes(query, key, value, self.embed_dim, self.kdim, self.vdim, self.batch_first)
        q, k, v = self._project(query, key, value)
        if query.dim() == 2:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        if is_causal:
            attn_mask = None
        mask = _merged(attn_mask, key_padding_mask, q.size(0), self.num_heads, q.size(1), k.size(1))
        more = int(self.bias_k is not None) + int(self.add_zero_attn)
        if more > 0:
            if is_causal:  # the kernel's counts positions, and the keys that follow have none
                causal = torch.ones(q.size(1), k.size(1), dtype=torch.bool, device=q.device).tril()
                mask, is_causal = causal if mask is None else _both(mask, causal), False
            k, v = self._followed(k, self.bias_k), self._followed(v, self.bias_v)
            mask = None if mask is None else F.pad(mask, [0, more], value=1.0 if mask.dtype == torch.bool else 0.0)

        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            all_weights = F.dropout(_weights(q, k, mask, is_causal, self.kind), dropout).to(v.dtype)
            heads = all_weights @ v
            weights = all_weights.mean(1) if average_attn_weights else all_weights
        else:
            heads = attention(q, k, v, mask, dropout, is_causal, kind=self.kind)
        output = self.out_proj(self._joined(heads, query.dim() == 3 and not self.batch_first))
        if query.dim() == 2:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Linear maps in the layout of the inputs; a self-attention's in one product."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is None:
            q_weight, k_weight, v_weight = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        elif query is key and key is value:
            q, k, v = F.linear(query, weight, bias).chunk(3, -1)
            return q, k, v
        else:
            q_weight, k_weight, v_weight = weight.chunk(3)
        if bias is None:
            return F.linear(query, q_weight), F.linear(key, k_weight), F.linear(value, v_weight)
        q_bias, k_bias, v_bias = bias.chunk(3)
        return F.linear(query, q_weight, q_bias), F.linear(key, k_weight, k_bias), F.linear(value, v_weight, v_bias)

    def _followed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[B, M, E] and what add_bias_kv and add_zero_attn let follow: [B, M + 1 or 2, E]."""
        if bias is not None:
            x = torch.cat([x, bias.to(x.dtype).expand(x.size(0), 1, x.size(2))], 1)
        return F.pad(x, [0, 0, 0, 1]) if self.add_zero_attn else x

    def _heads(self, x: Tensor) -> Tensor:
        """[B, length, E] as [B, num_heads, length, head_dim], a view."""
        return x.view(x.size(0), x.size(1), self.num_heads, self.head_dim).transpose(1, 2)

    def _joined(self, x: Tensor, length_first: bool) -> Tensor:
        """[B, num_heads, N, head_dim] as [B, N, E] or [N, B, E]."""
        return (x.permute(2, 0, 1, 3) if length_first else x.transpose(1, 2)).flatten(2)

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, kind={self.kind!r}, dropout={self.dropout}, "
            f"batch_first={self.batch_first}"
        )


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"MultiheadAttention: expected dropout in [0, 1), got {dropout}")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, embed_dim: int, kdim: int, vdim: int, batch_first: bool) -> None:
    if query.dim() not in (2, 3) or query.size(-1) != embed_dim:
        raise ValueError(
            f"MultiheadAttention: expected query of 2 or 3 dimensions, the last of size {embed_dim}, got {list(query.shape)}"
        )
    expected = list(query.shape)
    length_at = 1 if query.dim() == 3 and batch_first else 0
    if key.dim() == query.dim():
        expected[length_at] = key.size(length_at)
    expected[-1] = kdim
    if list(key.shape) != expected:
        raise ValueError(
            f"MultiheadAttention: expected key of shape {expected} (of any length) to go with the query, got {list(key.shape)}"
        )
    expected[-1] = vdim
    if list(value.shape) != expected:
        raise ValueError(f"MultiheadAttention: expected value of shape {expected} to go with the key, got {list(value.shape)}")


def _keep(name: str, mask: Tensor) -> Tensor:
    """torch.nn.MultiheadAttention's boolean masks say what not to attend to, attention's what to attend to."""
    if mask.dtype == torch.bool:
        return mask.logical_not()
    if not mask.is_floating_point():
        raise TypeError(f"MultiheadAttention: expected {name} to be boolean or floating, got {mask.dtype}")
    return mask


def _merged(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, batch: int, heads: int, queries: int, keys: int
) -> Tensor | None:
    """Both masks as one that broadcasts to [B, num_heads, N, M], in the convention of attention."""
    mask: Tensor | None = None
    if attn_mask is not None:
        matrices = [batch * heads, queries, keys]
        if list(attn_mask.shape) != matrices and list(attn_mask.shape) != matrices[1:]:
            raise ValueError(
                f"MultiheadAttention: expected attn_mask of shape {matrices[1:]} or {matrices}, got {list(attn_mask.shape)}"
            )
        mask = _keep("attn_mask", attn_mask)
        if mask.dim() == 3:
            mask = mask.reshape(batch, heads, queries, keys)
    if key_padding_mask is not None:
        if list(key_padding_mask.shape) != [batch, keys]:
            raise ValueError(
                f"MultiheadAttention: expected key_padding_mask of shape {[batch, keys]}, got {list(key_padding_mask.shape)}"
            )
        padding = _keep("key_padding_mask", key_padding_mask)[:, None, None, :]
        mask = padding if mask is None else _both(mask, padding)
    return mask


def _both(a: Tensor, b: Tensor) -> Tensor:
    """What attends under two masks: both booleans, or the product of the weights whose logarithms they are."""
    if a.dtype == torch.bool and b.dtype == torch.bool:
        return a & b
    if a.dtype == torch.bool:
        return b.masked_fill(a.logical_not(), float("-inf"))
    if b.dtype == torch.bool:
        return a.masked_fill(b.logical_not(), float("-inf"))
    return a + b


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, kind: str) -> Tensor:
    """The matrix of normalized weights [B, num_heads, N, M]: equation (1) of docs/math.md, from the operator's normalizers."""
    _, balance, log_normalizer = attention_with_normalizer(q, k, k[..., :0], mask, 0.0, is_causal, kind=kind)
    scores = _scores(q.to(balance.dtype), k.to(balance.dtype))
    without_keys = log_normalizer == float("-inf")
    log_weight = -log_normalizer.masked_fill(without_keys, 0.0).unsqueeze(-1)
    if mask is not None:
        log_weight = _both(log_weight, mask)
    if is_causal:
        log_weight = _both(log_weight, torch.ones(q.size(-2), k.size(-2), dtype=torch.bool, device=q.device).tril())
    weights = (scores + log_weight).exp()
    if kind == "cosh":
        weights = (weights + (log_weight - scores).exp()) / 2
    elif kind != "exp":
        weights = (weights - (log_weight - scores).exp()) / 2
    if kind == "sinh":
        weights = weights / balance.masked_fill(without_keys, 1.0).unsqueeze(-1)
    return weights


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled scores in the dtype of their normalizers, autocast or not."""
    q = q / float(q.size(-1)) ** 0.5
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return torch.matmul(q, k.transpose(-2, -1))
    with nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):  # the meta device has no autocast
        return torch.matmul(q, k.transpose(-2, -1))
