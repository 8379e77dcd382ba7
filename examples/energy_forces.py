# SPDX-License-Identifier: BSD-3-Clause
"""Learn the energy of clusters of atoms from energies and forces: forces are derivatives, so training takes second ones.

Clusters of 13 atoms with Lennard-Jones energies, from a simulation at constant temperature. The model is attention between atoms
whose log weights depend on their distances, so it sees neither rotations nor the order of the atoms; its forces are minus the
gradient of its energy, and a loss on them is differentiated through that gradient: double backward through attention and through
the gradient of its bias. It is trained on energies alone and on both, with fused attention and with PyTorch's own, whose second
derivative is that of its unfused math.
"""

import argparse
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from language_model.model import SdpaAttention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from torch_rescaled.nn import RescaledAttention

ATOMS = 13
COLORS = {"energies": "#d1570a", "energies and forces": "#1f6feb"}


def distances(x: Tensor) -> Tensor:
    """[B, N, 3] to [B, N, N]; an atom's to itself is about 0, with a derivative of 0."""
    return ((x[:, :, None] - x[:, None]).square().sum(-1) + 1e-8).sqrt()


def lennard_jones(x: Tensor) -> Tensor:
    """Energies [B]; the wall is cut at 0.8, and a weak pull toward the center keeps a cluster together."""
    i, j = torch.triu_indices(ATOMS, ATOMS, 1)
    inverse = distances(x)[:, i, j].clamp_min(0.8) ** -6
    centered = x - x.mean(1, keepdim=True)
    return (4 * (inverse.square() - inverse)).sum(1) + 0.05 * centered.square().sum((1, 2))


def forces_of(energy: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
    (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=create_graph)
    return -gradient


def simulate(count: int, temperature: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions [count, 13, 3], energies and forces: 64 chains of Langevin dynamics, cooled from a random gas."""
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(64, ATOMS, 3, generator=generator)
    kept, step = [], 2e-4
    for i in range(4000 + 200 * (-(-count // 64))):
        x.requires_grad_()
        force = forces_of(lennard_jones(x), x).clamp(-200, 200)
        heat = temperature * max(1.0, 5 * (1 - i / 3000))
        x = x.detach() + step * force + (2 * heat * step) ** 0.5 * torch.randn(x.shape, generator=generator)
        if i >= 4000 and i % 200 == 199:
            kept.append(x - x.mean(1, keepdim=True))
    x = torch.cat(kept)[:count].requires_grad_()
    energy = lennard_jones(x)
    return x.detach(), energy.detach(), forces_of(energy, x)


class Potential(nn.Module):
    """Energies [B] of atoms at [B, N, 3], up to an affine map."""

    def __init__(self, width: int, depth: int, heads: int, attention: str) -> None:
        super().__init__()
        layer = RescaledAttention if attention == "fused" else SdpaAttention
        self.register_buffer("centers", torch.linspace(0.7, 4.0, 24))
        self.embed = nn.Sequential(nn.Linear(24, width), nn.SiLU(), nn.Linear(width, width))
        self.bias = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 2 * heads), nn.SiLU(), nn.Linear(2 * heads, heads)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attention = nn.ModuleList(layer(width, heads) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = torch.exp(-25 * (distances(x)[..., None] - self.centers).square())  # [B, N, N, 24]
        h = self.embed(features).sum(2) / ATOMS**0.5
        for i, (attention, bias, mlp) in enumerate(zip(self.attention, self.bias, self.mlps, strict=True)):
            h = h + attention(self.norms[2 * i](h), attn_mask=bias(features).permute(0, 3, 1, 2))
            h = h + mlp(self.norms[2 * i + 1](h))
        return self.read(h).sum((1, 2))


@dataclass
class Curve:
    seconds: float = 0.0
    steps: list[int] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)  # mean absolute errors on held-out clusters
    force: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    x: Tensor
    energy: Tensor
    force: Tensor


def train(labels: str, attention: str, data: Data, held_out: Data, chosen: argparse.Namespace) -> tuple[nn.Module, Curve]:
    torch.manual_seed(chosen.seed)
    model, curve = Potential(chosen.width, chosen.depth, chosen.heads, attention), Curve()
    mean, scale = data.energy.mean(), data.energy.std()
    optimizer = torch.optim.AdamW(model.parameters(), chosen.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, chosen.learning_rate, total_steps=chosen.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(chosen.seed)
    interval = 0.2 if sys.stderr.isatty() else 15.0
    with sdpa_kernel(SDPBackend.MATH) if attention == "torch" else nullcontext():
        for step in tqdm(range(1, chosen.steps + 1), desc=f"{labels}, {attention}", unit="step", mininterval=interval):
            start = time.perf_counter()
            rows = torch.randint(len(data.x), (chosen.batch,), generator=generator)
            x = data.x[rows].requires_grad_()
            energy = model(x)
            loss = (energy - (data.energy[rows] - mean) / scale).square().mean()
            if labels == "energies and forces":
                force = forces_of(energy, x, create_graph=True)
                loss = 0.1 * loss + (force - data.force[rows] / scale).square().mean() * (scale / data.force.std()) ** 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            curve.seconds += time.perf_counter() - start
            if step % max(1, chosen.steps // 20) == 0:
                x = held_out.x.clone().requires_grad_()
                energy = model(x)
                curve.steps.append(step)
                curve.energy.append((energy.detach() * scale + mean - held_out.energy).abs().mean().item())
                curve.force.append((forces_of(energy, x) * scale - held_out.force).abs().mean().item())
    return model, curve


def picture(curves: dict[str, Curve], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=140, layout="constrained")
    for labels, curve in curves.items():
        left.plot(curve.steps, curve.energy, color=COLORS[labels], linewidth=2, label=f"trained on {labels}")
        right.plot(curve.steps, curve.force, color=COLORS[labels], linewidth=2)
    left.set(xlabel="step", ylabel="energy, mean absolute error", yscale="log", title="held-out clusters")
    right.set(xlabel="step", ylabel="force, mean absolute error", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, help in (
        ("clusters", 1000, "to train on"), ("steps", 1000, "training steps"), ("batch", 32, "clusters in a step"),
        ("width", 32, "of the atoms' features"), ("depth", 2, "attention layers"), ("heads", 4, "of a layer"), ("seed", 0, ""),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{help} (default: {default})")
    parser.add_argument("--learning-rate", type=float, default=3e-3, metavar="X", help="highest (default: 3e-3)")
    parser.add_argument("--output", type=Path, default=Path("runs/energy_forces"), metavar="FOLDER")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    chosen, start = parse(arguments), time.perf_counter()
    x, energy, force = simulate(chosen.clusters + 200, temperature=0.25, seed=chosen.seed)
    data, held_out = (Data(x[part], energy[part], force[part]) for part in (slice(200, None), slice(200)))
    print(f"{len(x)} clusters, energies {energy.mean():.1f} +- {energy.std():.2f}, forces +- {force.std():.1f}")
    curves = {}
    print_rows = []
    for labels in COLORS:
        for attention in ("fused", "torch") if labels == "energies and forces" else ("fused",):
            _, curve = train(labels, attention, data, held_out, chosen)
            if attention == "fused":
                curves[labels] = curve
            print_rows.append((labels, attention, curve))
    print(f"\n{'trained on':22}{'attention':12}{'ms a step':>10}{'energy error':>14}{'force error':>14}")
    for labels, attention, curve in print_rows:
        print(f"{labels:22}{attention:12}{1e3 * curve.seconds / chosen.steps:10.1f}{curve.energy[-1]:14.3f}{curve.force[-1]:14.3f}")
    image = chosen.output / "energy_forces.png"
    picture(curves, image)
    print(f"\nCurves: {image}   ({time.perf_counter() - start:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
