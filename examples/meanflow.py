# SPDX-License-Identifier: BSD-3-Clause
"""Train a flow that draws handwritten digits in one step, by MeanFlow: its loss needs a JVP through attention at every step.

A small transformer learns the average velocity u(z, r, t) of the straight path from an image (t = 0) to noise (t = 1). What u
should be is known from its own total derivative along the path, a JVP; one step from noise, z - u(z, 0, 1), is then a sample. The
same model is trained on fused attention, and on PyTorch's own, which forward-mode derivatives take to its unfused math. Images are
the 8 x 8 digits that come with scikit-learn; how good the samples are is judged by a classifier of them.

Source: Geng et al., Mean Flows for One-step Generative Modeling (arXiv 2505.13447), equations (6) to (11).
"""

import argparse
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from language_model.model import SdpaAttention
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from torch_rescaled.nn import RescaledAttention

SIDE, CLASSES = 8, 10


def waves(x: Tensor, size: int) -> Tensor:
    """[B] in [0, 1] to [B, size]. No fast ones: the loss has the model's derivative in the times."""
    angles = x[:, None] * torch.exp(torch.linspace(0, math.log(20), size // 2, dtype=x.dtype))
    return torch.cat([angles.cos(), angles.sin()], -1)


class Block(nn.Module):
    """Attention and MLP whose inputs are scaled and shifted, and whose outputs are gated, by the condition."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = (RescaledAttention if attention == "fused" else SdpaAttention)(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.condition = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.condition.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = self.condition(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attention(self.norm(x) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp(self.norm(x) * (1 + mlp_scale) + mlp_shift)


class Flow(nn.Module):
    """Average velocity [B, 8, 8] from z [B, 8, 8] at time t to r <= t [B], for classes [B]. Every patch is a token."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, attention: str) -> None:
        super().__init__()
        self.width, self.patch = width, patch
        self.read = nn.Linear(patch * patch, width)
        self.position = nn.Parameter(0.02 * torch.randn((SIDE // patch) ** 2, width))
        self.label = nn.Embedding(CLASSES, width)
        self.times = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads, attention) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, patch * patch)
        nn.init.zeros_(self.write.weight)

    def forward(self, z: Tensor, r: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        p, n = self.patch, SIDE // self.patch
        x = self.read(z.view(-1, n, p, n, p).transpose(2, 3).reshape(-1, n * n, p * p)) + self.position
        condition = self.times(torch.cat([waves(t, self.width), waves(t - r, self.width)], -1)) + self.label(labels)
        for block in self.blocks:
            x = block(x, F.silu(condition))
        return self.write(self.norm(x)).view(-1, n, n, p, p).transpose(2, 3).reshape(-1, SIDE, SIDE)


def mean_flow_errors(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Squared errors of the average velocity at random times, [B]."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    r, t = torch.sigmoid(normal(2, len(images)) - 0.4).sort(0).values  # r <= t
    r = torch.where(torch.rand(len(images), generator=generator) < 0.5, t, r)  # half: the velocity itself
    noise, time = normal(*images.shape), t[:, None, None]
    z, v = (1 - time) * images + time * noise, noise - images
    u, change = torch.func.jvp(lambda z, r, t: model(z, r, t, labels), (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return (u - (v - (t - r)[:, None, None] * change).detach()).square().mean((1, 2))


@torch.no_grad()
def draw(model: nn.Module, labels: Tensor, steps: int, seed: int) -> Tensor:
    z = torch.randn(len(labels), SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    for i in range(steps, 0, -1):
        t, r = (torch.full((len(labels),), value / steps) for value in (i, i - 1))
        z = z - model(z, r, t, labels) / steps
    return z


@dataclass(frozen=True)
class Result:
    model: nn.Module
    seconds: float
    losses: list[float]


def train(attention: str, images: Tensor, labels: Tensor, chosen: argparse.Namespace) -> Result:
    torch.manual_seed(chosen.seed)
    model = Flow(chosen.width, chosen.depth, chosen.heads, chosen.patch, attention)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(model.parameters(), chosen.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, chosen.learning_rate, total_steps=chosen.steps, pct_start=0.1)
    generator, losses, seconds = torch.Generator().manual_seed(chosen.seed), [], 0.0
    interval = 0.2 if sys.stderr.isatty() else 15.0
    with sdpa_kernel(SDPBackend.MATH) if attention == "torch" else nullcontext():
        for _ in tqdm(range(chosen.steps), desc=attention, unit="step", mininterval=interval):
            start = time.perf_counter()
            rows = torch.randint(len(images), (chosen.batch,), generator=generator)
            errors = mean_flow_errors(model, images[rows], labels[rows], generator)
            optimizer.zero_grad()
            (errors / (errors.detach() + 1e-3)).mean().backward()  # large errors weigh no more than small ones
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(errors.mean().item())
            seconds += time.perf_counter() - start
    return Result(average.module, seconds, losses)


def picture(real: Tensor, drawn: dict[str, Tensor], path: Path) -> None:
    """One row of images a digit; real ones first, then a block for each way of drawing."""
    blocks = {"real": real} | drawn
    figure, axes = plt.subplots(1, len(blocks), figsize=(2.4 * len(blocks), 3.2), dpi=140, layout="constrained")
    for axis, (name, images) in zip(axes, blocks.items(), strict=True):
        framed = F.pad(images, (1, 1, 1, 1), value=-1).view(CLASSES, -1, SIDE + 2, SIDE + 2)
        sheet = framed.transpose(1, 2).flatten(2).flatten(0, 1)
        axis.imshow(sheet, cmap="gray_r", vmin=-1, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", nargs="+", choices=("fused", "torch"), default=["fused", "torch"], help="(default: both)")
    for name, default, help in (
        ("steps", 1000, "training steps"), ("batch", 128, "images in a step"), ("width", 64, "of the residual stream"),
        ("depth", 4, "blocks"), ("heads", 4, "of a block"), ("patch", 2, "side of a token's pixels: 1, 2 or 4"), ("seed", 0, ""),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{help} (default: {default})")
    parser.add_argument("--learning-rate", type=float, default=3e-3, metavar="X", help="highest (default: 3e-3)")
    parser.add_argument("--output", type=Path, default=Path("runs/meanflow"), metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    if chosen.patch not in (1, 2, 4):
        parser.error(f"--patch must be 1, 2 or 4, got {chosen.patch}")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    chosen, start = parse(arguments), time.perf_counter()
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float() / 8 - 1, torch.from_numpy(digits.target)  # [1797, 8, 8] in [-1, 1]
    judge = SVC().fit(images.flatten(1), labels)
    wanted = torch.arange(CLASSES).repeat_interleave(20)
    drawn, results = {}, {name: train(name, images, labels, chosen) for name in dict.fromkeys(chosen.attention)}
    print(f"\n{'attention':12}{'seconds':>10}{'ms a step':>12}{'error':>10}{'drawn as asked, 1 step':>26}{'4 steps':>10}")
    for name, result in results.items():
        right = []
        for steps in (1, 4):
            found = draw(result.model, wanted, steps, chosen.seed).clamp(-1, 1)
            right.append((torch.from_numpy(judge.predict(found.flatten(1))) == wanted).float().mean().item())
            drawn[f"{name}, {steps} step{'s' * (steps > 1)}"] = found.view(CLASSES, 20, SIDE, SIDE)[:, :6].flatten(0, 1)
        last = result.losses[-max(1, chosen.steps // 20) :]
        print(
            f"{name:12}{result.seconds:10.1f}{1e3 * result.seconds / chosen.steps:12.1f}{sum(last) / len(last):10.4f}"
            f"{right[0]:26.0%}{right[1]:10.0%}"
        )
    real = torch.stack([images[labels == c][i] for c in range(CLASSES) for i in range(6)])
    image = chosen.output / "meanflow.png"
    picture(real, drawn, image)
    print(f"\nSamples: {image}   ({time.perf_counter() - start:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
