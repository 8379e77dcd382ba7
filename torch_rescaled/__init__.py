# SPDX-License-Identifier: BSD-3-Clause
"""Fused exp / cosh / sinh attention for PyTorch with every derivative in linear memory."""

from torch_rescaled import _library as _library
from torch_rescaled import _vmap as _vmap
