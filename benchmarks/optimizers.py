# SPDX-License-Identifier: BSD-3-Clause
"""Held-out loss of a small GPT over tokens, operations and seconds: optim.Newton beside AdamW, Muon and L-BFGS.

python benchmarks/optimizers.py   # the picture of docs/optim.md and its figures: about fifteen minutes
python benchmarks/report.py       # the table there from the results

The model of examples/train_language_model.py at a batch of 2^14 bytes. AdamW and Muon run for several numbers of steps, each with
its own cosine schedule, and for a grid of learning rates; their best is what Newton is compared with. Newton and L-BFGS have no
learning rate; Newton's embeddings and vectors are AdamW's, at one rate.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from curvature import EXAMPLES  # also the path of the examples
from report import best_runs
from timing import HERE, header, write_json
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from torch_rescaled.optim import Curvature

assert EXAMPLES

from language_model.corpus import Corpus, read_standard_library
from language_model.model import ModelSettings
from language_model.training import Trainer, TrainingSettings

RESULTS, PICTURE = HERE / "results" / "optimizers_cpu.json", HERE.parent / "docs" / "images" / "optimizers.png"
MODEL = ModelSettings(width=64, depth=2, heads=4, context=256)
BATCH = 64
RATES = {"adamw": (3e-3, 1e-2, 3e-2), "muon": (3e-3, 1e-2, 3e-2, 1e-1), "newton": (1e-2,), "lbfgs": (1.0,)}
STEPS = {"adamw": (16, 32, 64, 128), "muon": (16, 32, 64, 128), "newton": (16,), "lbfgs": (16,)}
COLORS = {"adamw": "#1f6feb", "muon": "#2da44e", "newton": "#d1570a", "lbfgs": "#8250df"}
NAMES = {"adamw": "AdamW", "muon": "Muon", "newton": "Newton", "lbfgs": "L-BFGS"}


def flops_of(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


class Count:
    """Operations of what a closure is called for: a loss, a loss and its gradient, or a Gauss-Newton product."""

    def __init__(self, trainer: Trainer, corpus: Corpus) -> None:
        model, windows = trainer.model, trainer.batch(corpus)
        inner = model.loss_and_logits
        parameters = [p for p in model.parameters() if p.dim() > 1]

        def gradient() -> None:
            torch.autograd.grad(model.loss(windows), list(model.parameters()))

        with torch.no_grad():
            self.loss = flops_of(lambda: model.loss(windows))
        self.gradient = flops_of(gradient)
        curvature = Curvature(lambda: inner(windows), parameters, "gauss_newton")
        self.product = flops_of(lambda: curvature.product([torch.ones_like(p) for p in parameters]))
        self.total, self.calls = 0, {"loss": 0, "gradient": 0, "product": 0}

        def counted(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            dual = forward_ad._current_level >= 0
            self.add("gradient" if torch.is_grad_enabled() else "product" if dual else "loss")
            return inner(windows)

        model.loss_and_logits = counted

    def add(self, name: str) -> None:
        self.total += getattr(self, name)
        self.calls[name] += 1


def lbfgs_step(trainer: Trainer, optimizer: torch.optim.LBFGS, corpus: Corpus) -> None:
    windows = trainer.batch(corpus)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = trainer.model.loss(windows)
        loss.backward()
        return loss

    trainer.history.train.append(float(optimizer.step(closure)))


def train(optimizer: str, rate: float, steps: int, corpus: Corpus, folder: Path) -> dict[str, Any]:
    settings = TrainingSettings(
        steps, BATCH, rate, warm_up=max(1, steps // 10), optimizer="adamw" if optimizer == "lbfgs" else optimizer
    )
    trainer = Trainer(MODEL, settings, folder / "checkpoint.pt")
    held_out = corpus.held_out_windows(64, MODEL.context)
    count, points, seconds = Count(trainer, corpus), [], 0.0
    lbfgs = torch.optim.LBFGS(trainer.model.parameters(), max_iter=20, history_size=20, line_search_fn="strong_wolfe")
    for step in range(1, steps + 1):
        start = time.perf_counter()
        if optimizer == "lbfgs":
            lbfgs_step(trainer, lbfgs, corpus)
        else:
            trainer.history.train.append(trainer.step(trainer.batch(corpus)))
        seconds += time.perf_counter() - start
        flops, calls = count.total, dict(count.calls)
        if step % max(1, steps // 32) == 0:
            points.append([step, trainer.evaluate(held_out), flops, seconds])
            count.total, count.calls = flops, calls
        if not math.isfinite(trainer.history.train[-1]):
            break
    print(f"{NAMES[optimizer]:8} rate {rate:<6g} {steps:4} steps  {points[-1][1]:.3f} nats  {seconds:6.1f} s", flush=True)
    return {"optimizer": NAMES[optimizer], "rate": rate, "steps": steps, "calls": dict(count.calls), "points": points}


def picture(runs: list[dict[str, Any]], path: Path) -> None:
    """Held-out loss over tokens, operations and seconds; every run thin, the best of every length thick."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 4), dpi=140, layout="constrained", sharey=True)
    best = {id(run) for run in best_runs(runs)}
    for run in sorted(runs, key=lambda run: id(run) in best):
        thick = id(run) in best
        steps, losses, flops, seconds = zip(*run["points"], strict=True)
        bytes_seen = [step * BATCH * MODEL.context for step in steps]
        for axes, x in zip(panels, (bytes_seen, flops, seconds), strict=True):
            axes.plot(
                x,
                losses,
                color=COLORS[run["optimizer"].lower().replace("-", "")],
                linewidth=2 if thick else 0.6,
                alpha=1.0 if thick else 0.35,
            )
    for name, color in COLORS.items():
        panels[0].plot([], [], color=color, linewidth=2, label=NAMES[name])
    for axes, label in zip(panels, ("bytes trained on", "floating-point operations", "seconds"), strict=True):
        axes.set(xlabel=label, xscale="log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="held-out loss, nats per byte", ylim=(None, 3.6))
    panels[0].set_title("thin: other learning rates", fontsize=9)
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", choices=tuple(RATES), default=list(RATES))
    parser.add_argument("--most-steps", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    corpus = read_standard_library()
    result = {
        "benchmark": "optimizers",
        **header([torch.get_num_threads()]),
        "threads": [torch.get_num_threads()],
        "batch_bytes": BATCH * MODEL.context,
    }
    with tempfile.TemporaryDirectory() as folder:
        result["runs"] = [
            train(optimizer, rate, steps, corpus, Path(folder))
            for optimizer in options.optimizers
            for steps in STEPS[optimizer]
            for rate in RATES[optimizer]
            if steps <= options.most_steps
        ]
    write_json(options.output, result)
    picture(result["runs"], options.picture)


if __name__ == "__main__":
    main()
