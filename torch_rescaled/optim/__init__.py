# SPDX-License-Identifier: BSD-3-Clause
"""Optimizers with curvature, for models that train with fused attention."""

from torch_rescaled.optim.curvature import Curvature
from torch_rescaled.optim.newton import Newton

__all__ = ["Curvature", "Newton"]
