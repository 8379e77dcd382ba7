# SPDX-License-Identifier: BSD-3-Clause
"""Finds and loads the operator library."""

from pathlib import Path

import torch

torch.ops.load_library(Path(__file__).with_name("libtorch_rescaled.so"))
