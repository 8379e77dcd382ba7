# SPDX-License-Identifier: BSD-3-Clause
"""Loss and gradient of the matrix regression on CPU beside the same formula in PyTorch, eager and compiled; products, all
gradients, and targets that are not formed.

python benchmarks/matrix_regression.py    # the figures of docs/matrix_regression.md: about five minutes
python benchmarks/report.py               # the table there from the results
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from memory import measure_all
from timing import HERE, Contestant, Run, header, interleave, summary, write_json
from torch import Tensor

from torch_rescaled import matrix_regression_hvp, matrix_regression_loss

RESULTS = HERE / "results" / "matrix_regression_cpu.json"
OURS, EAGER, COMPILED = "torch_rescaled", "eager", "torch.compile"
PRODUCT, SIDES = "Hessian product", "gradients in A1, X, A2"
TEACHER, TAUGHT_PRODUCT, SPARSE = "teacher", "teacher, Hessian product", "sparse"
PER_ROW = 16  # components of the sparse target


@dataclass(frozen=True)
class Case:
    kind: str = "exp"
    form: str = "normalized"
    heads: int = 1
    length: int = 2048  # rows of A1 and of A2
    columns: int = 64


def formula(A1: Tensor, X: Tensor, A2: Tensor, B: Tensor, kind: str, form: str) -> Tensor:
    """As one writes it down; softmax where it is one."""
    z = A1 @ X @ A2.mT
    if (kind, form) == ("exp", "normalized"):
        return (torch.softmax(z, -1) - B).square().sum() / 2
    u = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}[kind](z)
    total = u.sum(-1, keepdim=True)
    c = {"rescaled": lambda: u - total * B, "normalized": lambda: u / total - B, "plain": lambda: u - B}[form]()
    return c.square().sum() / 2


def contestants(case: Case) -> list[Contestant]:
    """Value and gradient in X; beside them, of ours, a Hessian product, all gradients, and the targets that are not formed."""
    torch.manual_seed(0)
    heads, n, d = case.heads, case.length, case.columns
    A1, A2 = torch.randn(heads, n, d), torch.randn(heads, n, d) / d**0.5
    B, X, V = torch.softmax(torch.randn(heads, n, n), -1), torch.randn(heads, d, d) / d, torch.randn(heads, d, d)
    taught = {"teacher_query": torch.randn(heads, n, d) / d**0.5, "teacher_key": torch.randn(heads, n, d)}
    rows = {
        "crow_indices": PER_ROW * torch.arange(n + 1),
        "col_indices": torch.arange(0, n, n // PER_ROW).repeat(n),
        "values": torch.softmax(torch.randn(n, PER_ROW), -1).flatten(),
    }
    torch.compiler.reset()
    compiled = torch.compile(formula, dynamic=False)

    def ours(A1: Tensor, X: Tensor, A2: Tensor, B: Tensor, kind: str, form: str) -> Tensor:
        return matrix_regression_loss(A1, X, A2, B, kind=kind, form=form).sum()

    def gradient(f: Callable[..., Tensor]) -> Callable[[], Run]:
        def piece() -> tuple[Tensor, ...]:
            x = X.clone().requires_grad_()
            loss = f(A1, x, A2, B, case.kind, case.form)
            return (loss.detach(), *torch.autograd.grad(loss, x))

        return lambda: piece

    def product(B: Tensor | None, **target: Tensor) -> Callable[[], Run]:
        def piece() -> tuple[Tensor, ...]:
            return (matrix_regression_hvp(A1, X, A2, B, V, kind=case.kind, form=case.form, **target),)

        return lambda: piece

    def gradients() -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (A1, X, A2)]
        return torch.autograd.grad(ours(*leaves, B, case.kind, case.form), leaves)

    def on(target: dict[str, Tensor]) -> Callable[..., Tensor]:
        return lambda A1, X, A2, B, kind, form: matrix_regression_loss(A1, X, A2, kind=kind, form=form, **target).sum()

    return [
        Contestant(OURS, gradient(ours)),
        Contestant(EAGER, gradient(formula)),
        Contestant(COMPILED, gradient(compiled)),
        Contestant(PRODUCT, product(B)),
        Contestant(SIDES, lambda: gradients),
        Contestant(TEACHER, gradient(on(taught))),
        Contestant(TAUGHT_PRODUCT, product(None, **taught)),
        Contestant(SPARSE, gradient(on(rows))),
    ]


def memory_contestants(case: Case) -> list[Contestant]:
    return [c for c in contestants(case) if c.name != COMPILED]


def require_agreement(case: Case, listed: list[Contestant]) -> None:
    """Nobody is fast at computing something else."""
    results = {c.name: c.run()[1] for c in listed if c.name in (OURS, EAGER, COMPILED)}
    for name, (loss, gradient) in results.items():
        true_loss, true_gradient = results[EAGER]
        error = max(abs(loss / true_loss - 1).item(), ((gradient - true_gradient).norm() / true_gradient.norm()).item())
        if not error < 1e-3:
            raise RuntimeError(f"{case}: {name} and {EAGER} differ by {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="columns d")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048], help="rows n")
    parser.add_argument("--memory-lengths", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "matrix_regression", **header(options.threads)}
    timings = []
    kinds_and_forms = [("exp", "normalized"), ("exp", "rescaled"), ("cosh", "normalized"), ("cosh", "rescaled")]
    for (kind, form), d, n, threads in itertools.product(kinds_and_forms, options.sizes, options.lengths, options.threads):
        torch.set_num_threads(threads)
        case = Case(kind, form, 1, n, d)
        listed = contestants(case)
        require_agreement(case, listed)
        figures = {name: summary(samples) for name, samples in interleave(listed, options.repeats, 0.0).items()}
        seconds = figures[OURS]["seconds"]
        ratios = {name: f["seconds"] / seconds for name, f in figures.items() if name != OURS}
        timings.append({**asdict(case), "threads": threads, "contestants": figures, "ratios": ratios})
        told = ", ".join(f"{ratio:.2f} {name}" for name, ratio in ratios.items())
        print(f"{kind} {form} n {n} d {d} threads {threads}: {1e3 * seconds:.1f} ms; over it {told}", flush=True)
    memory = measure_all([Case(length=n) for n in options.memory_lengths], max(options.threads), "matrix_regression")
    for entry in memory:
        print(f"memory n {entry['length']}: {entry['contestant']} {entry['peak_bytes'] / 2**20:.1f} MiB")
    write_json(options.output, {**result, "timings": timings, "memory": memory})


if __name__ == "__main__":
    main()
