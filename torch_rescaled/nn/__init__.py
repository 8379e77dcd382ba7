# SPDX-License-Identifier: BSD-3-Clause
"""Layers."""

from torch_rescaled.nn.attention import RescaledAttention
from torch_rescaled.nn.loss import AttentionLoss

__all__ = ["AttentionLoss", "RescaledAttention"]
