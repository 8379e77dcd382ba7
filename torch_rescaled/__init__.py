# SPDX-License-Identifier: BSD-3-Clause
"""Fused exp / cosh / sinh attention for PyTorch with every derivative in linear memory."""

from torch_rescaled import _flops as _flops
from torch_rescaled import _library as _library
from torch_rescaled import _vmap as _vmap
from torch_rescaled import functional as functional
from torch_rescaled import nn as nn
from torch_rescaled import optim as optim
from torch_rescaled._library import build_info, cmake_prefix_path
from torch_rescaled.functional import attention, attention_with_normalizer, backend
from torch_rescaled.losses import attention_loss
from torch_rescaled.map_regression import AttentionRegression, MapSolution, MatrixRegression
from torch_rescaled.matrix_regression import matrix_regression_evaluate, matrix_regression_hvp, matrix_regression_loss
from torch_rescaled.regression import newton_step, regression_evaluate, regression_hvp, regression_loss
from torch_rescaled.reports import Report, SolveError, Status
from torch_rescaled.solve import Regression, Solution, solve

__version__ = "0.1.0"
__all__ = [
    "AttentionRegression",
    "MapSolution",
    "MatrixRegression",
    "Regression",
    "Report",
    "Solution",
    "SolveError",
    "Status",
    "attention",
    "attention_loss",
    "attention_with_normalizer",
    "backend",
    "build_info",
    "cmake_prefix_path",
    "functional",
    "matrix_regression_evaluate",
    "matrix_regression_hvp",
    "matrix_regression_loss",
    "newton_step",
    "nn",
    "optim",
    "regression_evaluate",
    "regression_hvp",
    "regression_loss",
    "solve",
]
