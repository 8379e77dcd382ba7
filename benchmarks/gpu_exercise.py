# SPDX-License-Identifier: BSD-3-Clause
"""Every primitive on the GPU, at small sizes, against the CPU kernels: a line for each primitive, kind and dtype.

Exit status 1 if one is further off than 3 % (half types) or 0.01 %, or if the plain-tensor path was taken. With --few: what
compute-sanitizer can watch within a minute.
"""

import itertools
import sys

import torch
from torch import Tensor

import torch_rescaled

ops = torch.ops.torch_rescaled
KINDS = ("exp", "cosh", "sinh")
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


def main(few: bool) -> int:
    path = torch_rescaled.backend(torch.empty(1, 1).cuda())
    print(f"path {path}, sources {torch_rescaled.build_info()['cuda_sources']}")
    good = path != "plain"
    everything = itertools.product(LIMITS, KINDS, (0.0, 0.3))
    for dtype, kind, dropout_p in [(torch.float32, "sinh", 0.3), (torch.bfloat16, "exp", 0.0)] if few else everything:
        x = problem(dtype, dropout_p)
        there = {name: [None if t is None else t.cuda() for t in tensors] for name, tensors in x.items()}
        settings = (dropout_p, True, None, kind)
        ours, expected = primitives(there, settings), primitives(x, settings)
        torch.cuda.synchronize()
        for name, tensors in ours.items():
            pairs = zip(tensors, expected[name], strict=True)
            error = max(((a.cpu() - b).double().abs().max() / b.double().abs().max()).item() for a, b in pairs)
            passed = error <= LIMITS[dtype]  # a NaN does not pass
            good = good and passed
            dropout = " dropout" if dropout_p else ""
            print(
                f"{str(dtype).removeprefix('torch.')} {kind}{dropout} {name}: {error:.0e}{'' if passed else ' FAILED'}", flush=True
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main("--few" in sys.argv[1:]))
