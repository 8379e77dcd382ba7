# SPDX-License-Identifier: BSD-3-Clause
"""Layers."""

from torch_rescaled.nn.attention import RescaledAttention

__all__ = ["RescaledAttention"]
