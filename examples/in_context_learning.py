# SPDX-License-Identifier: BSD-3-Clause
"""A step of the weights as a shift of the data: what holds exactly in softmax regression f(A x), f = softmax.

A layer that sees rows A and answers f(A x) learns in context if shifting what it sees does what training x would do
(arXiv:2304.13276). For a step dx:

* data shift: dA = (A dx) x^T / |x|^2, the smallest dA with f((A + dA) x) = f(A (x + dx));
* label shift: b' = b + f(A x) - f(A (x + dx)) has at x the residual that b has at x + dx; |b' - b| <= 1/2 |A| |dx|.

Both are checked along gradient descent and along Newton steps, and drawn; so are the eigenvalues of the loss's Hessian in the
logits for b in the simplex, which stay in [-0.2404, 0.3081], wherever the logits are.

python examples/in_context_learning.py    # seconds; writes in_context_learning.png
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from torch_rescaled import newton_step, regression_loss

LOWEST, HIGHEST = -0.2404, 0.3081


def softmax_regression(A: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return regression_loss(A, b, x, form="normalized")


def data_shift(A: Tensor, x: Tensor, dx: Tensor) -> Tensor:
    return torch.outer(A @ dx, x) / x.square().sum()


def walk(A: Tensor, b: Tensor, x: Tensor, kind: str, steps: int) -> dict[str, list[float]]:
    """Steps of gradient descent or Newton: losses, shifts of weights, data and labels, and errors of the identities."""
    found: dict[str, list[float]] = {name: [] for name in ("loss", "weights", "data", "labels", "bound", "error")}
    gradient = torch.func.grad(softmax_regression, 2)
    rate = 1 / (HIGHEST * torch.linalg.matrix_norm(A, 2) ** 2)  # below 1 over the largest curvature: every step descends
    for _ in range(steps):
        dx = -rate * gradient(A, b, x) if kind == "gradient" else newton_step(A, b, x, form="normalized", damping=1e-3)
        dA = data_shift(A, x, dx)
        before, after, seen = torch.softmax(A @ x, 0), torch.softmax(A @ (x + dx), 0), torch.softmax((A + dA) @ x, 0)
        label = b + before - after
        found["loss"].append(float(softmax_regression(A, b, x)))
        found["weights"].append(float(dx.norm() / x.norm()))
        found["data"].append(float(dA.norm() / A.norm()))
        found["labels"].append(float((label - b).norm()))
        found["bound"].append(float(0.5 * torch.linalg.matrix_norm(A, 2) * dx.norm()))
        found["error"].append(float(max((after - seen).abs().max(), ((before - label) - (after - b)).abs().max())))
        x = x + dx
    return found


def curvatures(samples: int) -> Tensor:
    """Extreme eigenvalues of the Hessian in the logits at random logits and targets, [samples, 2]."""
    extremes = []
    for i in range(samples):
        n = 2 + i % 5
        z, b = 3 * torch.randn(n, dtype=torch.float64), torch.distributions.Dirichlet(torch.full((n,), 0.3)).sample().double()
        b = b / b.sum()
        identity = torch.eye(n, dtype=torch.float64)
        hessian = torch.func.hessian(softmax_regression, 2)(identity, b, z)
        values = torch.linalg.eigvalsh(hessian)
        extremes.append(torch.stack([values[0], values[-1]]))
    return torch.stack(extremes)


def picture(path: Path, walks: dict[str, dict[str, list[float]]], values: Tensor) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for kind, color in zip(walks, ("tab:blue", "tab:orange"), strict=True):
        found = walks[kind]
        best = min(min(w["loss"]) for w in walks.values())
        axes[0].semilogy([v - best + 1e-18 for v in found["loss"]], color=color, label=kind)
        axes[1].semilogy(found["weights"], color=color, label=f"{kind}: |dx| / |x|")
        axes[1].semilogy(found["data"], color=color, linestyle="--", label=f"{kind}: |dA| / |A|")
        axes[1].semilogy(found["labels"], color=color, linestyle=":", label=f"{kind}: |b' - b|")
    axes[0].set(title="loss above the best", xlabel="step")
    axes[1].set(title="shift of weights, and what it is as a shift of data or labels", xlabel="step", ylim=(1e-12, 10))
    axes[2].hist(values[:, 0], bins=50, label="smallest")
    axes[2].hist(values[:, 1], bins=50, label="largest")
    for bound in (LOWEST, HIGHEST):
        axes[2].axvline(bound, color="black", linewidth=0.8)
    axes[2].set(title="eigenvalues of the Hessian in the logits, and their bounds", yscale="log")
    for axis in axes:
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--picture", type=Path, default=Path("in_context_learning.png"))
    options = parser.parse_args()
    torch.manual_seed(0)
    A = torch.randn(200, 8, dtype=torch.float64)
    b = torch.softmax(A @ torch.randn(8, dtype=torch.float64), 0)
    x = torch.randn(8, dtype=torch.float64)
    walks = {kind: walk(A, b, x, kind, options.steps) for kind in ("gradient", "newton")}
    for kind, found in walks.items():
        worst = max(s / bound for s, bound in zip(found["labels"], found["bound"], strict=True) if bound > 0)
        print(
            f"{kind}: loss {found['loss'][0]:.2e} to {found['loss'][-1]:.2e}; identities hold to {max(found['error']):.0e}; "
            f"label shifts reach {worst:.0%} of their bound"
        )
    values = curvatures(options.samples)
    print(f"Hessian in the logits: eigenvalues from {values.min():.4f} to {values.max():.4f}, bounds {LOWEST} and {HIGHEST}")
    picture(options.picture, walks, values)
    print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
