# SPDX-License-Identifier: BSD-3-Clause
"""Distil one attention layer of the example language model into a fresh one, by the rescaled and by the normalized loss.

A short training gives the teacher. The student's query, key and value projections then learn, from the same inputs, the output
of every head of one teacher layer, three times from the same start: by the normalized loss, by the rescaled loss as it stands,
and by the rescaled loss after a start by the normalized one, each position's scale at that moment taken out (log_row_scale). The
picture shows how well each fits held-out text, and the mean log normalizer of its rows: the rescaled loss can also be made small
by making every weight small.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from language_model.corpus import Corpus, read_standard_library
from language_model.model import LanguageModel, ModelSettings
from language_model.training import Trainer, TrainingSettings
from torch import Tensor
from tqdm import tqdm

from torch_rescaled import attention_loss, attention_with_normalizer
from torch_rescaled.nn import RescaledAttention

VARIANTS = ("normalized", "rescaled", "normalized, then rescaled")
COLORS = {"normalized": "#1f6feb", "rescaled": "#d1570a", "normalized, then rescaled": "#2da44e"}


@dataclass
class Curve:
    steps: list[int] = field(default_factory=list)
    error: list[float] = field(default_factory=list)  # |W - B|^2 / |B|^2 on held-out text
    log_normalizer: list[float] = field(default_factory=list)  # mean over rows


class Heads:
    """A layer of the language model as (query, key, value) of its heads, rotated; teacher and student see the same inputs."""

    def __init__(self, model: LanguageModel, depth: int) -> None:
        self.model, self.depth = model, depth

    @torch.no_grad()
    def inputs(self, data: Tensor) -> Tensor:  # [B, N] -> [B, N, width]
        x = self.model.embedding(data)
        for block in self.model.blocks[: self.depth]:
            x = block(x, self.model.rotary)
        normed: Tensor = self.model.blocks[self.depth].attention_norm(x)
        return normed

    def of(self, layer: RescaledAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [B, heads, N, head size] each
        q, k, v = layer.project(x)
        return self.model.rotary(q), self.model.rotary(k), v

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        layer = self.model.blocks[self.depth].attention
        return attention_with_normalizer(*self.of(layer, x), is_causal=True, kind=layer.kind)[0]


def teacher(corpus: Corpus, steps: int, kind: str, output: Path) -> LanguageModel:
    training = TrainingSettings(steps, warm_up=max(1, steps // 10))
    trainer = Trainer(ModelSettings(depth=3, kind=kind), training, output / "teacher.pt")
    trainer.train(corpus)
    return trainer.model.eval()


@torch.no_grad()
def mean_log_normalizer(q: Tensor, k: Tensor, v: Tensor, kind: str) -> Tensor:
    """For each head and position, over the batch: [heads, N]."""
    return attention_with_normalizer(q, k, v, is_causal=True, kind=kind)[2].mean(0)


def distil(heads: Heads, corpus: Corpus, variant: str, chosen: argparse.Namespace) -> Curve:
    torch.manual_seed(chosen.seed)
    settings = heads.model.settings
    student = RescaledAttention(settings.width, settings.heads, kind=chosen.kind, bias=False, is_causal=True)
    parameters = [*student.query.parameters(), *student.key.parameters(), *student.value.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=chosen.learning_rate)
    held_out = heads.inputs(corpus.held_out_windows(16, settings.context)[:, :-1])
    wanted, curve = heads.target(held_out), Curve()
    form, scale = variant.partition(",")[0], None
    for step in tqdm(range(chosen.steps + 1), desc=variant, unit="step", mininterval=0.2 if sys.stderr.isatty() else 15.0):
        if step % max(1, chosen.steps // 40) == 0:
            with torch.no_grad():
                out, _, log_normalizer = attention_with_normalizer(*heads.of(student, held_out), is_causal=True, kind=chosen.kind)
            curve.steps.append(step)
            curve.error.append(((out - wanted).square().sum() / wanted.square().sum()).item())
            curve.log_normalizer.append(log_normalizer.mean().item())
        x = heads.inputs(corpus.batch(chosen.batch, settings.context, step)[:, :-1])
        q, k, v = heads.of(student, x)
        if variant == "normalized, then rescaled" and step == chosen.steps // 2:
            form, scale = "rescaled", mean_log_normalizer(q, k, v, chosen.kind)
        loss = attention_loss(
            q, k, v, heads.target(x), is_causal=True, kind=chosen.kind, form=form, log_row_scale=scale, reduction="mean"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return curve


def picture(curves: dict[str, Curve], title: str, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=140, layout="constrained")
    for variant, curve in curves.items():
        left.plot(curve.steps, curve.error, color=COLORS[variant], linewidth=2, label=f"{variant}: {curve.error[-1]:.3f}")
        right.plot(curve.steps, curve.log_normalizer, color=COLORS[variant], linewidth=2)
    left.set(xlabel="step", ylabel="held-out error  |W - B|² / |B|²", yscale="log", title=title)
    right.set(xlabel="step", ylabel="mean log normalizer", title="size of the weights before they are normalized")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("exp", "cosh", "signed"), default="exp", help="of the student (default: exp)")
    parser.add_argument("--teacher-kind", choices=("exp", "cosh", "signed"), default="exp", help="(default: exp)")
    parser.add_argument("--teacher-steps", type=int, default=150, metavar="N", help="training steps of the teacher (default: 150)")
    parser.add_argument("--layer", type=int, choices=(0, 1, 2), default=1, help="the teacher's layer (default: 1)")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="training steps of each student (default: 400)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="sequences in a step (default: 8)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, metavar="X", help="of Adam (default: 2e-3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("runs/distil"), metavar="FOLDER")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    chosen, start = parse(arguments), time.perf_counter()
    corpus = read_standard_library()
    model = teacher(corpus, chosen.teacher_steps, chosen.teacher_kind, chosen.output)
    heads = Heads(model, chosen.layer)
    curves = {variant: distil(heads, corpus, variant, chosen) for variant in VARIANTS}
    print(f"\n{'loss':28}{'held-out error':>16}{'log normalizer: first':>24}{'last':>10}")
    for variant, curve in curves.items():
        print(f"{variant:28}{curve.error[-1]:16.4f}{curve.log_normalizer[0]:24.2f}{curve.log_normalizer[-1]:10.2f}")
    image = chosen.output / "distil_layer.png"
    picture(curves, f"{chosen.kind} student of an {chosen.teacher_kind} layer", image)
    print(f"\nCurves: {image}   ({time.perf_counter() - start:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
