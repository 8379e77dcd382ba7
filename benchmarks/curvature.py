# SPDX-License-Identifier: BSD-3-Clause
"""Curvature products of a small GPT beside its gradient: time and peak memory, by the attention inside.

python benchmarks/curvature.py    # the figures of docs/optim.md: about two minutes
python benchmarks/report.py       # the table there from the results

The model of examples/train_language_model.py, with fused attention, with PyTorch's math attention (its only one that has a
second derivative) and with no attention at all (values pass as they are), which is what the rest of the model needs. curvlinops
is measured where it is installed.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from memory import measure_all
from timing import HERE, Contestant, Run, header, interleave, summary, write_json
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_rescaled.optim import Curvature

EXAMPLES = str(HERE.parent / "examples")
sys.path.insert(0, EXAMPLES)

from language_model.model import LanguageModel, ModelSettings

RESULTS = HERE / "results" / "curvature_cpu.json"
ATTENTIONS = ("fused", "math", "none")
PRODUCTS = ("gradient", "hessian, fresh", "hessian, retained", "gauss_newton, fresh", "gauss_newton, retained")
OTHERS = ("hessian, curvlinops", "gauss_newton, curvlinops")


@dataclass(frozen=True)
class Case:
    kind: str = "exp"
    attention: str = "fused"
    batch: int = 4
    length: int = 512
    width: int = 128
    depth: int = 4
    heads: int = 4


def without_attention(q: Tensor, k: Tensor, v: Tensor, layer: Any) -> Tensor:
    """Depends on queries and keys, so that every parameter has a gradient."""
    out: Tensor = layer.output((v + q * 0 + k * 0).transpose(1, 2).flatten(2))
    return out


def make(case: Case) -> tuple[LanguageModel, Tensor]:
    torch.manual_seed(0)
    attention = "sdpa" if case.attention == "math" else "fused"
    model = LanguageModel(ModelSettings(case.width, case.depth, case.heads, case.length, case.kind, attention))
    if case.attention == "none":
        for block in model.blocks:
            layer = block.attention
            layer.attend = lambda q, k, v, layer=layer: without_attention(q, k, v, layer)
    return model, torch.randint(256, (case.batch, case.length + 1))


def directions(model: LanguageModel) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


def piece(case: Case, name: str) -> Callable[[], Run]:
    model, windows = make(case)
    parameters, v = list(model.parameters()), directions(model)

    def closure() -> tuple[Tensor, Tensor]:
        return model.loss_and_logits(windows)

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(closure()[0], parameters)

    product, _, how = name.partition(", ")
    if product == "gradient":
        return lambda: gradient
    if how == "curvlinops":
        operator = by_curvlinops(product, model, windows)
        flat = torch.cat([t.flatten() for t in v])
        return lambda: lambda: (operator @ flat,)
    if how == "fresh":
        return lambda: lambda: tuple(Curvature(closure, parameters, product).product(v))
    kept: list[Curvature] = []

    def prepare() -> Run:
        if not kept:
            kept.append(Curvature(closure, parameters, product))
            kept[0].product(v)
        return lambda: tuple(kept[0].product(v))

    return prepare


def by_curvlinops(product: str, model: LanguageModel, windows: Tensor) -> Any:
    """Its operators take classes in the second dimension, as cross entropy does."""
    curvlinops = importlib.import_module("curvlinops")
    operator = curvlinops.HessianLinearOperator if product == "hessian" else curvlinops.GGNLinearOperator
    data = [(windows[:, :-1], windows[:, 1:])]

    class Transposed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).movedim(-1, 1)

    return operator(Transposed(), torch.nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False)


def contestants(case: Case, with_others: bool = False) -> list[Contestant]:
    names = PRODUCTS + (OTHERS if with_others and case.attention != "none" else ())
    context = (lambda: sdpa_kernel(SDPBackend.MATH)) if case.attention == "math" else None
    made = [(f"{name}; {case.attention}", piece(case, name)) for name in names]
    return [Contestant(name, prepare, context) if context else Contestant(name, prepare) for name, prepare in made]


def memory_contestants(case: Case) -> list[Contestant]:
    return [c for c in contestants(case) if "retained" not in c.name]


def agree(listed: list[Contestant]) -> None:
    """The products of fused and of math attention are the same."""
    results = {c.name: c.run()[1] for c in listed}
    for name in PRODUCTS:
        ours, theirs = (torch.cat([t.flatten() for t in results[f"{name}; {a}"]]) for a in ("fused", "math"))
        error = ((ours - theirs).norm() / theirs.norm()).item()
        if not error < 1e-3:
            raise SystemExit(f"{name}: fused and math attention differ by {error:.1e}")


def timings(threads: list[int], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with_others = importlib.util.find_spec("curvlinops") is not None
    for count in threads:
        torch.set_num_threads(count)
        listed = [c for attention in ATTENTIONS for c in contestants(Case(attention=attention), with_others)]
        agree(listed)
        samples = interleave(listed, options.repeats, 0.0)
        base = summary(samples["gradient; fused"])["seconds"]
        for name, found in samples.items():
            what, _, attention = name.partition("; ")
            own = summary(samples[f"gradient; {attention}"])["seconds"]
            entry = summary(found)
            yield {
                "threads": count, "product": what, "attention": attention, **entry, "over_gradient": entry["seconds"] / own,
                "over_fused_gradient": entry["seconds"] / base,
            }  # fmt: skip
            milliseconds = 1e3 * entry["seconds"]
            print(f"{count} threads  {what:28} {attention:6} {milliseconds:8.1f} ms  {entry['seconds'] / own:5.2f}x its gradient")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = {"benchmark": "curvature", **header(options.threads), "case": asdict(Case())}
    memory = measure_all([Case(attention=a) for a in ATTENTIONS], max(options.threads), "curvature")
    result["memory"] = [
        {"product": e["contestant"].partition("; ")[0], "attention": e["attention"], "peak_bytes": e["peak_bytes"]} for e in memory
    ]
    for entry in result["memory"]:
        print(f"peak     {entry['product']:28} {entry['attention']:6} {entry['peak_bytes'] / 2**20:8.1f} MiB")
    result["timings"] = list(timings(options.threads, options))
    write_json(options.output, result)


if __name__ == "__main__":
    main()
