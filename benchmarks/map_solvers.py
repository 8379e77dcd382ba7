# SPDX-License-Identifier: BSD-3-Clause
"""Whole solves of attention maps and layers beside Adam, L-BFGS and Gauss-Newton on the same loss from the same start.

CPU seconds with one thread, to 1e-3 and 1e-6 above the best loss that anyone found from that start. Heads are of the sentence
encoder all-MiniLM-L6-v2 (the extra `encoder`), left out where it is not installed.

python benchmarks/map_solvers.py     # about ten minutes
python benchmarks/report.py          # the table of docs/matrix_regression.md
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from map_peers import Curve, Task, clock, run_peers
from timing import HERE, header, write_json
from torch import Tensor

sys.path.insert(0, str(HERE.parent / "examples"))
from sentence_encoder import MISSING, Encoder, Head, model_folder, sentences

from torch_rescaled import AttentionRegression, MatrixRegression, attention, matrix_regression_loss, solve

RESULTS = HERE / "results" / "map_solvers_cpu.json"
GAPS = (1e-3, 1e-6)
OURS = "torch_rescaled"
Problem = MatrixRegression | AttentionRegression
# Layer, head, the head of that layer whose outputs are the target, and the student's kind.
HEADS = ((2, 0, 0, "cosh"), (1, 3, 3, "cosh"), (2, 0, 3, "exp"))


def map_case(n: int, d: int, rank: int | None) -> tuple[Problem, Tensor, Task]:
    """Softmax of planted logits of unit variance with noise of 0.3 on them; B keeps a residual."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    A1, A2 = normal(n, d), normal(n, d)
    B = torch.softmax(A1 @ (normal(d, d) / d) @ A2.mT + 0.3 * normal(n, n), -1)
    X0 = normal(d, rank or d) @ normal(rank or d, d) * 0.1 / d
    problem = MatrixRegression(A1, A2, B, form="normalized", rank=rank)
    factors = solve(problem, X0, max_iterations=0).factors

    def residual(*parts: Tensor) -> Tensor:
        scores = A1 @ parts[0] @ A2.mT if len(parts) == 1 else (A1 @ parts[0]) @ (A2 @ parts[1]).mT
        return torch.softmax(scores, -1) - B

    def fused(*parts: Tensor) -> Tensor:
        X = parts[0] if len(parts) == 1 else parts[0] @ parts[1].mT
        return matrix_regression_loss(A1, X, A2, B, form="normalized")

    losses = {"eager": lambda *parts: residual(*parts).square().sum() / 2, "fused": fused}
    return problem, X0, Task(factors or (X0,), residual, losses, {})


def eager_map(scores: Tensor, keys: Tensor, kind: str) -> Tensor:
    """Weights of the keys, scaled by the largest |score| as softmax is by the largest score."""
    if kind == "exp":
        return torch.softmax(scores.masked_fill(~keys, -torch.inf), -1)
    most = scores.detach().abs().amax(-1, keepdim=True)
    up, down = torch.exp(scores - most) * keys, torch.exp(-scores - most) * keys
    return (up + down if kind == "cosh" else up - down) / (up + down).sum(-1, keepdim=True)


def best_outputs(features: Tensor, target: Tensor) -> Tensor:
    """The Y for which features Y is nearest to the target, by normal equations."""
    return torch.linalg.solve(features.mT @ features, features.mT @ target)


def root(rows: Tensor) -> Tensor:
    """The symmetric root of the rows' mean square."""
    values, vectors = torch.linalg.eigh(rows.mT @ rows / len(rows))
    return vectors * values.sqrt() @ vectors.mT


def head_case(head: Head, target: Tensor, kind: str) -> tuple[Problem, Tensor, Task]:
    """X and Y for queries, keys and values of one head, from X0 = 1 and the best Y for it."""
    q, k, v, rows = head.query, head.key, head.value, head.mask
    keys, T = rows.unsqueeze(-2), target[rows]
    X0 = torch.eye(q.shape[-1], dtype=q.dtype)
    problem = AttentionRegression(q, k, v, target, attn_mask=head.attn_mask, sample_dims=1, kind=kind)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "eager": lambda X: (eager_map(q @ X @ k.mT, keys, kind) @ v)[rows],
        "fused": lambda X: attention(q @ X, k, v, attn_mask=keys, scale=1.0, kind=kind)[rows],
    }
    if kind == "exp":
        sdpa = torch.nn.functional.scaled_dot_product_attention
        forms["sdpa"] = lambda X: sdpa(q @ X, k, v, attn_mask=keys, scale=1.0)[rows]

    def joint(features: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda X, Y: (features(X) @ Y - T).square().sum() / 2

    def projected(features: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        def loss(X: Tensor) -> Tensor:
            F = features(X)
            return (F @ best_outputs(F.detach(), T) - T).square().sum() / 2  # Y's own change has no slope at its best

        return loss

    def residual(X: Tensor, Y: Tensor) -> Tensor:
        return forms["eager"](X) @ Y - T

    start = (X0, best_outputs(forms["eager"](X0), T))
    left, right = root(q[rows]), root(k[rows])
    by_left, by_right = torch.linalg.inv(left), torch.linalg.inv(right)
    task = Task(
        start, residual, {n: joint(f) for n, f in forms.items()}, {n: projected(f) for n, f in forms.items()},
        lambda Z: by_left @ Z @ by_right, left @ X0 @ right,
    )  # fmt: skip
    return problem, X0, task


def ours(problem: Problem, X0: Tensor, method: str, repeats: int) -> Curve:
    """Losses from one solve's history; the time to each target from solves of that many iterations, which nothing interrupts."""
    solution = solve(problem, X0, method=method)
    losses = solution.history[:, solution.columns.index("log_loss")].exp().tolist()
    curve = Curve(0.0, [0.0] * len(losses), losses, "flat" if solution.status.converged else "limit")
    targets = {i for gap in GAPS if (i := curve.first_below(min(losses) * (1 + gap))) is not None}
    for i in sorted(targets | {len(losses) - 1}):
        times = []
        for _ in range(repeats):
            begin = clock()
            solve(problem, X0, method=method, max_iterations=i + 1)
            times.append(clock() - begin)
        curve.seconds[i] = statistics.median(times)
    return curve


def race(name: str, case: tuple[Problem, Tensor, Task], repeats: int, times_ours: float, most: float) -> dict[str, Any]:
    problem, X0, task = case
    if isinstance(problem, AttentionRegression):
        methods = ("lbfgs", "projection", "lbfgs_joint", "joint")
    else:
        methods = ("lbfgs", "cg", "newton") if problem.rank is None else ("lbfgs", "cg")
    runs = {OURS: {method: ours(problem, X0, method, repeats) for method in methods}}
    limit = min(times_ours * min(curve.seconds[-1] for curve in runs[OURS].values()), most)
    runs |= run_peers(task, limit)
    began = solve(problem, X0, max_iterations=0).loss.item()
    for contestant, settings in runs.items():
        for setting, curve in settings.items():
            if contestant != OURS and not abs(curve.losses[0] / began - 1) < 1e-6:
                raise RuntimeError(f"{name}: {contestant}, {setting} starts from the loss {curve.losses[0]}, ours from {began}")
    best = min(min(curve.losses) for settings in runs.values() for curve in settings.values())
    entry: dict[str, Any] = {"case": name, "unknowns": sum(p.numel() for p in task.start), "best": best, "limit": limit}
    entry["contestants"] = {
        contestant: {setting: curve.entry(best, GAPS) for setting, curve in settings.items()}
        for contestant, settings in runs.items()
    }
    for contestant, settings in entry["contestants"].items():
        for setting, found in settings.items():
            told = ", ".join(f"{gap}: {'-' if t is None else f'{t:.2f} s'}" for gap, t in found["seconds_to"].items())
            print(
                f"{name}: {contestant}, {setting}: {told}; ends {found['excess']:.1e} above the best ({found['end']})", flush=True
            )
    return entry


def synthetic_head() -> Head:
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 12, size, generator=g, dtype=torch.float64) for size in (4, 3, 3, 3)]
    return Head(*parts, torch.ones(2, 12, dtype=torch.bool))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small problems, a made-up head")
    parser.add_argument("--repeats", type=int, default=3, help="of each solve of ours; the median counts")
    parser.add_argument("--times-ours", type=float, default=15.0, help="how long a peer may take, in whole solves of ours")
    parser.add_argument("--most", type=float, default=60.0, help="and at most so many seconds")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "map_solvers", **header([1]), "times_ours": options.times_ours}
    n, d = (48, 6) if options.quick else (1024, 32)
    cases = {
        f"map, n {n}, d {d}": lambda: map_case(n, d, None),
        f"map, n {n}, d {d}, rank {d // 4}": lambda: map_case(n, d, d // 4),
    }
    folder = model_folder()
    if options.quick:
        made_up = synthetic_head()
        cases["made-up head, cosh student"] = lambda: head_case(made_up, made_up.output, "cosh")
    elif folder is None:
        print(f"no heads: {MISSING}")
    else:
        encoder, texts = Encoder(folder), sentences()
        for layer, index, target, kind in HEADS:
            of = f"head {layer}.{index}" + (f", outputs of {layer}.{target}" if target != index else "") + f", {kind} student"

            def make(layer: int = layer, index: int = index, target: int = target, kind: str = kind) -> Any:
                return head_case(encoder.head(texts, layer, index), encoder.head(texts, layer, target).output, kind)

            cases[of] = make
    result["cases"] = []
    for name, make in cases.items():
        result["cases"].append(race(name, make(), options.repeats, options.times_ours, options.most))
        write_json(options.output, result)  # what there is, should this be interrupted


if __name__ == "__main__":
    main()
