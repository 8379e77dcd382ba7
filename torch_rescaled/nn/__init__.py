# SPDX-License-Identifier: BSD-3-Clause
"""Layers."""

from torch_rescaled.nn.attention import RescaledAttention
from torch_rescaled.nn.loss import AttentionLoss
from torch_rescaled.nn.multihead import MultiheadAttention
from torch_rescaled.nn.replace import Replacements, replace_attention

__all__ = ["AttentionLoss", "MultiheadAttention", "Replacements", "RescaledAttention", "replace_attention"]
