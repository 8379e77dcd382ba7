# SPDX-License-Identifier: BSD-3-Clause
"""attention_loss and its gradients on CPU against the same loss written with PyTorch's attention.

python benchmarks/loss.py      # the figures of docs/losses.md: about a minute
python benchmarks/report.py    # the table there from the results
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from memory import measure_all
from timing import HERE, Contestant, Run, header, interleave, summary, write_json
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from torch_rescaled import attention_loss

RESULTS = HERE / "results" / "loss_cpu.json"
OURS, EAGER, SDPA = "torch_rescaled", "eager math", "sdpa + elementwise"
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    form: str = "normalized"
    kind: str = "exp"
    heads: int = 1
    length: int = 2048
    head_size: int = 64

    @property
    def point(self) -> list[Tensor]:
        """query, key, value, target [1, H, N, D]."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(1, self.heads, self.length, self.head_size, generator=generator) for _ in range(4)]


def eager(case: Case) -> Loss:
    """The definition; the scores of the rescaled form are not shifted, which it would need for larger ones."""
    phi = {"exp": torch.exp, "cosh": torch.cosh}[case.kind]

    def loss(query: Tensor, key: Tensor, value: Tensor, target: Tensor) -> Tensor:
        scores = query @ key.mT * case.head_size**-0.5
        if case.form == "normalized" and case.kind == "exp":
            return (scores.softmax(-1) @ value - target).square().sum() / 2
        u = phi(scores)
        d = u.sum(-1, keepdim=True)
        residual = u @ value - d * target if case.form == "rescaled" else u @ value / d - target
        return residual.square().sum() / 2

    return loss


def on_sdpa(case: Case) -> Loss:
    """The normalized form on torch's fused attention; cosh by doubled keys and values."""

    def loss(query: Tensor, key: Tensor, value: Tensor, target: Tensor) -> Tensor:
        if case.kind == "cosh":
            key, value = torch.cat([key, -key], -2), torch.cat([value, value], -2)
        return (scaled_dot_product_attention(query, key, value) - target).square().sum() / 2

    return loss


def contestants(case: Case) -> list[Contestant]:
    listed: dict[str, Loss] = {OURS: lambda *x: attention_loss(*x, kind=case.kind, form=case.form), EAGER: eager(case)}
    if case.form == "normalized":
        listed[SDPA] = on_sdpa(case)

    def prepare(loss: Loss) -> Run:
        point = [t.requires_grad_() for t in case.point]

        def piece() -> tuple[Tensor, ...]:
            value = loss(*point)
            return (value.detach(), *torch.autograd.grad(value, point))

        return piece

    return [Contestant(name, lambda loss=loss: prepare(loss)) for name, loss in listed.items()]


memory_contestants = contestants


def require_agreement(case: Case) -> None:
    results = {c.name: c.run()[1] for c in contestants(case)}
    for name, result in results.items():
        for got, expected in zip(result, results[OURS], strict=True):
            error = (got - expected).abs().max() / expected.abs().max()
            if not error <= 1e-4:
                raise RuntimeError(f"{case}: {name} and {OURS} differ by {error:.1e}")


def grid(options: argparse.Namespace) -> Iterator[Case]:
    for form, kind, heads, length, size in itertools.product(
        ("normalized", "rescaled"), ("exp", "cosh"), options.heads, options.lengths, options.head_sizes
    ):
        yield Case(form, kind, heads, length, size)


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--lengths", nargs="*", type=int, default=[2048])
    parser.add_argument("--head-sizes", nargs="*", type=int, default=[64])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--memory-lengths", nargs="*", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(command_line)
    memory = measure_all((Case(length=length) for length in options.memory_lengths), max(options.threads), "loss")
    result: dict[str, Any] = {"schema": 1, "benchmark": "loss", **header(options.threads), "timings": [], "memory": memory}
    for case, threads in itertools.product(grid(options), options.threads):
        torch.set_num_threads(threads)
        require_agreement(case)
        samples = interleave(contestants(case), options.repeats, options.seconds)
        figures = {name: summary(seconds) for name, seconds in samples.items()}
        ratios = {name: f["seconds"] / figures[OURS]["seconds"] for name, f in figures.items() if name != OURS}
        result["timings"].append({**asdict(case), "threads": threads, "contestants": figures, "ratios": ratios})
        shown = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in ratios.items())
        print(f"{case.form} {case.kind} B*H {case.heads} N {case.length} D {case.head_size} threads {threads}: {shown}", flush=True)
    write_json(options.output, result)


if __name__ == "__main__":
    main()
