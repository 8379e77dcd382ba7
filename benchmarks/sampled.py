# SPDX-License-Identifier: BSD-3-Clause
"""Hessians of sampled rows: how far they are from the Hessian, and what solves by them cost beside those by Grams of all rows.

python benchmarks/sampled.py            # a quarter of an hour, 3 GB of memory
python benchmarks/sampled.py --quick    # seconds: small problems, no picture
"""

import argparse
import itertools
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from regression_solvers import Case
from timing import HERE, header, write_json
from torch import Tensor

from torch_rescaled import Regression, solve

RESULTS = HERE / "results" / "sampled_cpu.json"
PICTURE = HERE.parent / "docs" / "images" / "sampled_spectral_error.png"
SAMPLINGS = ("leverage", "weight", "row_norm", "uniform")
METHODS = ("newton", "lbfgs", "sampled", "cg")
OPS = torch.ops.torch_rescaled
PHI = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}


def problem(n: int, d: int, rows: str, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """A, x, and b near softmax(A x). Rows "alike": normal. "rare columns": 40 rows alone have each of a quarter of the columns, in
    a size that does not show in the rows' length: their leverages are large, and nothing else about them."""
    g = torch.Generator().manual_seed(1)
    A, x = torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(d, generator=g, dtype=torch.float64)
    if rows == "rare columns":
        A[:, : d // 4] *= 0.3 * (torch.rand(n, d // 4, generator=g) < 40 / n)
        x[: d // 4] = 0
    x *= spread / (A @ x).std()
    b = torch.softmax(A @ x, 0) * (1 + 0.05 * torch.randn(n, generator=g, dtype=torch.float64))
    return A, x, b


def spectral_errors(n: int, d: int, rows: str, spread: float, sizes: list[int], seeds: int) -> list[dict[str, Any]]:
    """Medians of |H^-1/2 H_S H^-1/2 - 1| over seeds, by sampling and rows of the sample for each column."""
    A, x, b = problem(n, d, rows, spread)
    logits = OPS._regression_matvec(A, x)
    numbers = OPS._regression_statistics(logits, None, None, b, None, None, "exp", "normalized")[0]
    vectors = OPS._regression_rows(logits, numbers, b, None, None, "exp", "normalized")
    factor = torch.linalg.cholesky(OPS._regression_curvature(A, vectors, numbers, "gauss_newton")[1])
    found = []
    for sampling, size in itertools.product(SAMPLINGS, sizes):
        errors = []
        for seed in range(seeds):
            H = OPS._regression_sampled_hessian(A, b, x, None, None, "exp", "normalized", sampling, size * d, seed)
            left = torch.linalg.solve_triangular(factor, H, upper=False)
            both = torch.linalg.solve_triangular(factor, left.mT, upper=False)
            errors.append((torch.linalg.eigvalsh(both) - 1).abs().max().item())
        found.append({"rows": rows, "spread": spread, "sampling": sampling, "per_column": size, "error": statistics.median(errors)})
    print(f"spectral errors: {rows}, logits of deviation {spread}", flush=True)
    return found


def rescaled_to(case: Case, spread: float) -> Regression:
    """The case's problem with logits of another deviation."""
    made = case.problem()
    if spread == 1.0:
        return made
    g = torch.Generator().manual_seed(2)
    z = made.A @ solve(made, method="lbfgs").x
    u = PHI[case.kind](z * (spread / z.std()) if case.kind != "sinh" else spread * (z - z.mean()) / z.std() + z.mean())
    b = u if case.form == "plain" else u / u.sum()
    return Regression(
        made.A, b * (1 + case.noise * torch.randn(case.n, generator=g, dtype=b.dtype)), kind=case.kind, form=case.form
    )


def compare(case: Case, spread: float, repeats: int) -> dict[str, Any]:
    """Medians of whole solves from their own starts, interleaved; and what "auto" takes."""
    regression = rescaled_to(case, spread)
    samples: dict[str, list[float]] = {method: [] for method in METHODS}
    entry: dict[str, Any] = {**vars(case), "spread": spread, "methods": {}}
    for _ in range(repeats):
        for method, times in samples.items():
            start = time.perf_counter()
            s = solve(regression, method=method)
            times.append(time.perf_counter() - start)
            counts = {name: int(s.number(name)) for name in ("iterations", "reads", "grams", "samples")}
            entry["methods"][method] = {"status": s.status.name, "log_loss": s.number("log_loss").item(), **counts}
    for method, times in samples.items():
        entry["methods"][method]["seconds"] = statistics.median(times)
    entry["auto"] = solve(regression, max_iterations=0).method
    seconds = {method: m["seconds"] for method, m in entry["methods"].items()}
    entry["newton_over_sampled"] = seconds["newton"] / seconds["sampled"]
    entry["lbfgs_over_sampled"] = seconds["lbfgs"] / seconds["sampled"]
    print(f"{vars(case)}, spread {spread}: { ({m: round(s, 3) for m, s in seconds.items()}) }; auto: {entry['auto']}", flush=True)
    return entry


def draw(errors: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((e["rows"], e["spread"]) for e in errors))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        for sampling in SAMPLINGS:
            line = [e for e in errors if (e["rows"], e["spread"]) == panel and e["sampling"] == sampling]
            axis.loglog([e["per_column"] for e in line], [e["error"] for e in line], marker="o", label=sampling)
        sizes = sorted({e["per_column"] for e in errors})
        axis.loglog(sizes, [2 / math.sqrt(s) for s in sizes], "k--", label="2 sqrt(columns / rows of the sample)")
        axis.axhline(1, color="gray", linewidth=0.5)
        axis.set(xlabel="rows of the sample for each column", title=f"rows: {panel[0]}; logits of deviation {panel[1]:g}")
    axes[0].set_ylabel("spectral error of the sampled Hessian")
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small problems, no picture")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "sampled", **header([1]), "repeats": options.repeats}
    n, d, sizes, seeds = (3000, 8, [10, 40], 2) if options.quick else (20000, 32, [5, 10, 20, 40, 80, 160], 9)
    panels = [("alike", 0.5), ("alike", 2.0), ("rare columns", 1.0)]
    result["spectral"] = [entry for rows, spread in panels for entry in spectral_errors(n, d, rows, spread, sizes, seeds)]
    shapes = [(5000, 8)] if options.quick else [(20_000, 32), (100_000, 64), (200_000, 128), (400_000, 256)]
    cases = [
        (Case(*shape, 1e2, 0.05, kind), spread)
        for shape, kind in itertools.product(shapes, PHI)
        for spread in ([2.0] if shape == shapes[-1] else [0.5, 2.0])
    ]
    cases += [(Case(*shapes[-1], 1e2, 0.05, "exp", form), 1.0) for form in ("normalized", "plain", "rescaled")]
    result["solves"] = [compare(case, spread, options.repeats) for case, spread in cases]
    if not options.quick:
        draw(result["spectral"], PICTURE)
    write_json(options.output, result)


if __name__ == "__main__":
    main()
