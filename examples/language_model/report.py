# SPDX-License-Identifier: BSD-3-Clause
"""What a run shows: a table, a picture, and text written by the model."""

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from language_model.curvature import Eigenvalue
from language_model.model import LanguageModel
from language_model.training import History

COLORS = {"exp": "#1f6feb", "cosh": "#2da44e", "sinh": "#8250df", "signed": "#d1570a"}
LINES = {"exp": "o-", "cosh": "s--", "sinh": "v:", "signed": "^-."}  # curves that coincide stay visible
BITS = 1 / math.log(2)


@dataclass(frozen=True)
class Result:
    kind: str
    history: History
    tokens: int  # bytes trained on
    held_out_loss: float  # nats per byte
    eigenvalue: Eigenvalue | None


def table(results: list[Result]) -> str:
    rows = [("kind", "held-out loss", "bits per byte", "seconds", "tokens/s", "Hessian eigenvalue", "s/product")]
    for result in results:
        eigenvalue = product = "-"
        if result.eigenvalue is not None:
            eigenvalue = f"{result.eigenvalue.value:.1f} (residual {result.eigenvalue.residual:.0%})"
            product = f"{result.eigenvalue.seconds:.2f}"
        loss, seconds = result.held_out_loss, result.history.seconds
        speed = f"{result.tokens / seconds:.0f}" if seconds else "-"
        rows.append((result.kind, f"{loss:.4f}", f"{loss * BITS:.4f}", f"{seconds:.0f}", speed, eigenvalue, product))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def picture(results: list[Result], title: str, path: Path) -> None:
    """Training losses (smoothed, thin) and held-out losses (thick) of every kind over the steps."""
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=140, layout="constrained")
    for result in results:
        color = COLORS[result.kind]
        axes.plot(range(1, len(result.history.train) + 1), smoothed(result.history.train), color=color, alpha=0.35, linewidth=1)
        steps, losses = zip(*result.history.held_out, strict=True)
        label = f"{result.kind}: {result.held_out_loss * BITS:.3f} bits per byte held out"
        bits = [loss * BITS for loss in losses]
        axes.plot(steps, bits, LINES[result.kind], color=color, linewidth=2, markersize=4, label=label)
    axes.plot([], [], color="gray", alpha=0.5, linewidth=1, label="training (running mean)")
    axes.set(xlabel="step", ylabel="bits per byte", title=title)
    last = [loss * BITS for result in results for _, loss in result.history.held_out]
    axes.set_ylim(min(last) - 0.3, min(6.0, max(last) + 0.6))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def smoothed(losses: list[float]) -> list[float]:
    """Running mean in bits; unbiased from the first step on."""
    mean = weight = 0.0
    out = []
    for loss in losses:
        mean, weight = 0.95 * mean + 0.05 * loss * BITS, 0.95 * weight + 0.05
        out.append(mean / weight)
    return out


@torch.no_grad()
def sample(model: LanguageModel, prompt: str, size: int, seed: int, temperature: float = 0.7) -> str:
    """``prompt`` and ``size`` bytes that the model adds to it, made printable."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.frombuffer(bytearray(prompt.encode()), dtype=torch.uint8).long()[None]
    for _ in range(size):
        logits = model(data[:, -model.settings.context :])[0, -1]
        following = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)
        data = torch.cat([data, following[None]], 1)
    text = bytes(data[0].tolist()).decode(errors="replace")
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
