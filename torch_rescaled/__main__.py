# SPDX-License-Identifier: BSD-3-Clause
"""``python -m torch_rescaled``: what was built, and a self check of a few seconds."""

import sys
import time
from collections.abc import Callable

import torch

import torch_rescaled


def _identity_errors(kind: str) -> dict[str, float]:
    """Largest deviation of ``kind`` from the softmax attention it equals, by ATen in float64, for outputs and every derivative."""
    torch.manual_seed(0)
    q, k, v, tangent = (torch.randn(2, 33, 8, dtype=torch.float64) for _ in range(4))

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch_rescaled.attention(q, k, v, kind=kind)

    def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if kind != "exp":
            k, v = torch.cat([k, -k], -2), torch.cat([v, v if kind == "cosh" else -v], -2)
        return torch.softmax(q @ k.mT / 8**0.5, -1) @ v

    def results(f: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        x = [t.clone().requires_grad_() for t in (q, k, v)]
        out = f(*x)
        grads = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        second = torch.autograd.grad(sum((g.square().sum() for g in grads), torch.zeros(())), x)
        directional = torch.func.jvp(f, (q, k, v), (tangent, tangent.flip(-1), tangent.flip(-2)))[1]
        return [out.detach(), torch.cat([g.detach() for g in grads]), directional, torch.cat(second)]

    names = ("forward", "backward", "JVP", "double backward")
    pairs = zip(results(ours), results(expected), strict=True)
    return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in zip(names, pairs, strict=True)}


def main() -> int:
    start = time.perf_counter()
    print(f"torch_rescaled {torch_rescaled.__version__}")
    for name, value in torch_rescaled.build_info().items():
        print(f"  {name}: {value}")
    names = sorted({name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("torch_rescaled::")})
    print(f"  operators: {', '.join(name for name in names if not name.startswith('_'))}")
    print("self check against softmax attention in float64, largest relative error:")
    worst = 0.0
    for kind in ("exp", "cosh", "signed"):
        errors = _identity_errors(kind)
        worst = max(worst, *errors.values())
        print(f"  {kind:7}", "  ".join(f"{name} {error:.0e}" for name, error in errors.items()))
    good = worst < 1e-12
    print(f"{'ok' if good else 'FAILED'} ({time.perf_counter() - start:.1f} s)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
