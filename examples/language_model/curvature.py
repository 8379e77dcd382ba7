# SPDX-License-Identifier: BSD-3-Clause
"""The largest eigenvalue of the loss's Hessian, from Hessian products: double backward through the attention."""

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from language_model.model import LanguageModel


@dataclass(frozen=True)
class Eigenvalue:
    value: float  # of largest magnitude
    residual: float  # |H v - value v| / |value| for the unit vector v: how far v is from an eigenvector
    products: int
    seconds: float  # of a product


def largest_eigenvalue(model: LanguageModel, windows: Tensor, products: int, seed: int) -> Eigenvalue:
    """Power iteration with at most ``products`` Hessian products of the loss on ``windows``, fewer once it stands still.

    The graph of the gradient is recorded once; every product is one backward pass through it.
    """
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    direction = _normalized([torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters])
    value, residual, done = 0.0, float("inf"), 0
    bar = tqdm(total=products, desc=f"{model.settings.kind}: Hessian products", leave=False, disable=not sys.stderr.isatty())
    # PyTorch's fused attention has no double backward: its unfused one, which stores every weight, stands in.
    with bar, sdpa_kernel(SDPBackend.MATH) if model.settings.attention == "sdpa" else nullcontext():
        gradient = torch.autograd.grad(model.loss(windows), parameters, create_graph=True)
        start = time.perf_counter()
        while done < products and residual > 0.02:
            product = torch.autograd.grad(gradient, parameters, direction, retain_graph=True)
            done += 1
            value = _dot(product, direction)
            # |H v - value v|^2 = |H v|^2 - value^2 for the unit vector v
            residual = max(0.0, _dot(product, product) / value**2 - 1) ** 0.5
            direction = _normalized(product)
            bar.update()
    return Eigenvalue(value, residual, done, (time.perf_counter() - start) / done)


def _dot(left: list[Tensor] | tuple[Tensor, ...], right: list[Tensor] | tuple[Tensor, ...]) -> float:
    return float(sum(torch.dot(a.flatten(), b.flatten()).double() for a, b in zip(left, right, strict=True)))


def _normalized(vector: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    size = _dot(vector, vector) ** 0.5
    return [part / size for part in vector]
