# SPDX-License-Identifier: BSD-3-Clause
"""``python -m torch_rescaled``: what was built, and a self check of about two seconds; exit status 1 if it fails."""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import torch_rescaled
from torch_rescaled._inputs import KINDS

# The largest relative error that passes: float32 is held against float64, float64 against another order of summation.
LIMITS = {torch.float32: 1e-4, torch.float64: 1e-11}


def _dense(q: Tensor, k: Tensor, v: Tensor, kind: str) -> Tensor:
    """The definition, causal, as a formula that stores every weight."""
    s = q @ k.mT / q.shape[-1] ** 0.5
    keep = torch.ones(s.shape[-2:], dtype=torch.bool).tril()
    grow, fall = s.exp() * keep, (-s).exp() * keep
    if kind == "exp":
        u, c = grow, grow
    elif kind == "cosh":
        u, c = grow + fall, grow + fall
    else:
        u, c = grow - fall, grow - fall if kind == "sinh" else grow + fall
    output: Tensor = u @ v / c.sum(-1, keepdim=True)
    return output


def self_check(kind: str, dtype: torch.dtype) -> dict[str, float]:
    """Largest relative error of the outputs and of every derivative."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, tangent = (torch.rand(2, 77, 8, generator=generator).double() + 0.1 for _ in range(4))
    # Positive scores: the sum of sinh, which divides for the kind sinh, has no zero there.

    def results(f: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        x = [t.to(dtype, copy=True).requires_grad_() for t in (q, k, v)]
        out = f(*x)
        grads = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        second = torch.autograd.grad(grads, x, [tangent.to(dtype)] * 3)
        directional = torch.func.jvp(f, tuple(t.detach() for t in x), tuple(t.to(dtype) for t in (tangent, k, q)))[1]
        return [out.detach(), torch.cat([g.detach() for g in grads]), directional, torch.cat(second)]

    ours = results(lambda q, k, v: torch_rescaled.attention(q, k, v, is_causal=True, kind=kind), dtype)
    expected = results(lambda q, k, v: _dense(q, k, v, kind), torch.float64)
    names = ("forward", "backward", "jvp", "double backward")
    pairs = zip(names, ours, expected, strict=True)
    return {name: float((a.double() - b).abs().max() / b.abs().max()) for name, a, b in pairs}


def solver_check(kind: str) -> float:
    """How far the solver ends from coefficients that fit without a residual; of cosh up to their sign."""
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(300, 4, generator=generator, dtype=torch.float64) - 0.4
    x = torch.tensor([0.5, -0.25, 0.75, 1.0], dtype=torch.float64)
    b = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}[kind](A @ x)
    found = torch_rescaled.solve(torch_rescaled.Regression(A, b, kind=kind, form="plain")).x
    return float(torch.minimum((found - x).abs().max(), (found + x).abs().max() if kind == "cosh" else x.new_tensor(torch.inf)))


def facts() -> dict[str, str]:
    """What was built, and what the CUDA part of it finds: devices, and for each whether the kernels are verified on it."""
    lines: str = torch.ops.torch_rescaled.build_info(True)
    return dict(line.split(": ", 1) for line in lines.splitlines())


def main() -> int:
    start = time.perf_counter()
    print(f"torch_rescaled {torch_rescaled.__version__}")
    for name, value in facts().items():
        print(f"  {name}: {value}")
    operators = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("torch_rescaled::"))
    print(f"  operators: {', '.join(name.partition('::')[2] for name in operators)}")
    print("self check, largest relative error against the dense formulas in float64:")
    good = True
    for dtype, limit in LIMITS.items():
        for kind in KINDS:
            errors = self_check(kind, dtype)
            passed = all(error <= limit for error in errors.values())  # a NaN does not pass
            good = good and passed
            cells = "  ".join(f"{name} {error:.0e}" for name, error in errors.items())
            print(f"  {str(dtype).removeprefix('torch.')} {kind:7}{cells}{'' if passed else '  FAILED'}")
    for kind in ("exp", "cosh", "sinh"):
        error = solver_check(kind)
        good = good and error <= 1e-9
        print(f"  solver  {kind:7}largest error {error:.0e}{'' if error <= 1e-9 else '  FAILED'}")
    print(f"{'ok' if good else 'FAILED'} ({time.perf_counter() - start:.1f} s)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
