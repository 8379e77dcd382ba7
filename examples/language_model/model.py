# SPDX-License-Identifier: BSD-3-Clause
"""A pre-norm GPT on bytes, with rotary positions, around ``torch_rescaled.nn.RescaledAttention``."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_rescaled.nn import RescaledAttention

BYTES = 256


@dataclass(frozen=True)
class ModelSettings:
    width: int = 128
    depth: int = 5
    heads: int = 4
    context: int = 192
    kind: str = "exp"
    attention: str = "fused"  # or "sdpa": PyTorch's own, for comparison


class SdpaAttention(RescaledAttention):
    """The same layer on PyTorch's own attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=self.is_causal, scale=self.scale)
        result: Tensor = self.output(out.transpose(1, 2).flatten(2))
        return result


class Rotary(nn.Module):
    """Turns the pairs (i, i + size / 2) of a head by angles proportional to the position: scores then see distances only."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, context: int, base: float = 10000.0) -> None:
        super().__init__()
        frequencies = base ** -(torch.arange(head_size // 2) / (head_size // 2))
        angles = torch.outer(torch.arange(context), frequencies)  # [context, head_size / 2]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, heads, N, head_size]
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width = settings.width
        layer = SdpaAttention if settings.attention == "sdpa" else RescaledAttention
        self.attention_norm = nn.LayerNorm(width)
        self.attention = layer(width, settings.heads, kind=settings.kind, bias=False, is_causal=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        q, k, v = self.attention.project(self.attention_norm(x))
        x = x + self.attention.attend(rotary(q), rotary(k), v)
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """Logits of the next byte, ``[B, N, 256]``, for bytes ``[B, N]`` with N up to ``settings.context``."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        if settings.attention == "sdpa" and settings.kind != "exp":
            raise ValueError(f"PyTorch's own attention has only the kind exp, got {settings.kind}")
        self.settings = settings
        self.embedding = nn.Embedding(BYTES, settings.width)
        self.rotary = Rotary(settings.width // settings.heads, settings.context)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.embedding.weight, std=self.settings.width**-0.5)  # logits of order 1
        for block in self.blocks:
            # What is added to the residual stream starts small, so that its variance does not grow with depth.
            for layer in (block.attention.output, block.mlp[2]):
                layer.weight.data.mul_((2 * self.settings.depth) ** -0.5)

    def forward(self, data: Tensor) -> Tensor:
        x = self.embedding(data)
        for block in self.blocks:
            x = block(x, self.rotary)
        return F.linear(self.norm(x), self.embedding.weight)  # one table reads and writes bytes

    def loss_and_logits(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross entropy in nats per byte of ``windows`` ``[B, N + 1]``, and what it is computed from."""
        logits = self(windows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()), logits

    def loss(self, windows: Tensor) -> Tensor:
        return self.loss_and_logits(windows)[0]
