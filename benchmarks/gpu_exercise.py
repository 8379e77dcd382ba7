# SPDX-License-Identifier: BSD-3-Clause
"""Every primitive on the GPU, at small sizes, against the CPU kernels: a line for each primitive, kind and dtype.

python benchmarks/gpu_exercise.py [--few] [attention | regression | matrix_regression ...]

Exit status 1 if one is further off than 3 % (half types) or 0.01 %, or if a family took the plain-tensor path. With --few: what
compute-sanitizer can watch within a minute.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator

import torch
from gpu_exercise_regressions import KINDS, Pairs, matrix_regression, regression, regression_csr
from torch import Tensor

import torch_rescaled

ops = torch.ops.torch_rescaled
LIMITS = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 3e-2, torch.float16: 3e-2}


def problem(dtype: torch.dtype, dropout_p: float) -> dict[str, list[Tensor | None]]:
    """Grouped heads, an uneven length, a bias and a mask."""
    generator = torch.Generator().manual_seed(0)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    point = [new(1, 2, 2, 77, 64), new(1, 2, 1, 130, 64), new(1, 2, 1, 130, 64), new(2, 2, 77, 130).unsqueeze(0)]
    mask = torch.rand(130, generator=generator).expand(1, 1, 1, 1, 130) > 0.1
    seed = torch.arange(4).view(1, 2, 2) if dropout_p else None
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    cotangents = [new(1, 2, 2, 77, 64), new(1, 2, 2, 77).to(statistics), new(1, 2, 2, 77).to(statistics)]
    return {"point": [*point, mask, seed], "tangents": [new(*t.shape) for t in point], "cotangents": [*cotangents]}


def primitives(x: dict[str, list[Tensor | None]], settings: tuple[object, ...]) -> dict[str, list[Tensor]]:
    point, t, g = x["point"], x["tangents"], x["cotangents"]
    saved = ops._attention_forward(*point, *settings)
    at = (*point, *saved, *settings)
    return {
        "forward": list(saved),
        "backward": list(ops._attention_backward(*g, *at, [True] * 4)),
        "jvp": list(ops._attention_jvp(*t, *at)),
        "double_backward": list(ops._attention_double_backward(*t, *g, *at, [True] * 7)),
    }


def attention(few: bool, device: str) -> Iterator[tuple[torch.dtype, str, Pairs]]:
    everything = itertools.product(LIMITS, KINDS, (0.0, 0.3))
    for dtype, kind, dropout_p in [(torch.float32, "sinh", 0.3), (torch.bfloat16, "exp", 0.0)] if few else everything:
        x = problem(dtype, dropout_p)
        there = {name: [None if t is None else t.to(device) for t in tensors] for name, tensors in x.items()}
        settings = (dropout_p, True, None, kind)
        ours, expected = primitives(there, settings), primitives(x, settings)
        pairs = {name: [(a.cpu(), b) for a, b in zip(ours[name], expected[name], strict=True)] for name in ours}
        yield dtype, kind + (" dropout" if dropout_p else ""), pairs


FAMILIES: dict[str, Callable[[bool, str], Iterator[tuple[torch.dtype, str, Pairs]]]] = {
    "attention": attention,
    "regression": regression,
    "regression_csr": regression_csr,
    "matrix_regression": matrix_regression,
}


def path(family: str, device: str) -> str:
    """The path that the family's primitives take: plain too where none has a kernel for CUDA."""
    prefix = f"torch_rescaled::_{family.removesuffix('_csr')}_"  # a sparse A has the operators of a dense one
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix)]
    if device != "cpu" and not any(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in names):
        return "plain"
    return torch_rescaled.backend(torch.empty(1, 1, device=device), family=family)


def error(ours: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest number; of zeros as it is."""
    if expected.numel() == 0:
        return 0.0
    a, b = ours.double(), expected.double()
    return (a - b).abs().max().item() / (b.abs().max().item() or 1.0)


def main(arguments: list[str], device: str = "cuda") -> int:
    few, good = "--few" in arguments, True
    for family in [name for name in arguments if name != "--few"] or FAMILIES:
        suffix, took = "" if family == "attention" else f"_{family}", path(family, device)
        print(f"path {family} {took}, sources {torch_rescaled.build_info()[f'cuda_sources{suffix}']}", flush=True)
        good = good and took != "plain"
        for dtype, case, pairs in FAMILIES[family](few, device):
            for name, results in pairs.items():
                errors = [error(*pair) for pair in results]
                worst = max(errors, key=lambda e: (math.isnan(e), e))
                passed = worst <= LIMITS[dtype]
                good = good and passed
                what = f"{str(dtype).removeprefix('torch.')} {case} {name}"
                print(f"{what}: {worst:.0e}{'' if passed else ' FAILED'}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
