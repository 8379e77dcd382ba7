# SPDX-License-Identifier: BSD-3-Clause
"""Regressions with a sparse A on one GPU: passes over A against torch's sparse products (cuSPARSE), and from 1e5 to 1e8 nonzeros.

Timed by CUDA events, medians. Stops in time and says what it left out.

python benchmarks/gpu_regression_csr.py OUTPUT.json [SECONDS]
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_attention import header
from gpu_regression import EXP, OPS, copy_bandwidth, seconds_of
from timing import write_json
from torch import Tensor

ROUNDS = 7


@dataclass(frozen=True)
class Case:
    n: int
    d: int
    each: int  # values of a row
    columns: str  # "uniform", or "zipf": an intercept, and columns that are the rarer the later they come

    @property
    def nonzeros(self) -> int:
        return self.n * self.each

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        """Components, with int32 indices."""
        generator = torch.Generator("cuda").manual_seed(0)
        uniform = torch.rand(self.n, self.each, device="cuda", generator=generator)
        if self.columns == "zipf":
            columns = (self.d**uniform - 1).int().clamp_(0, self.d - 1)
            columns[:, 0] = 0
        else:
            columns = (uniform * self.d).int().clamp_(0, self.d - 1)
        columns = columns.sort(-1).values.flatten()
        crow = torch.arange(0, self.nonzeros + 1, self.each, device="cuda", dtype=torch.int32)
        return crow, columns, torch.randn(self.nonzeros, device="cuda", generator=generator) / self.each**0.5


CASES = [
    Case(1_000_000, 10_000, 10, "uniform"),
    Case(1_000_000, 10_000, 10, "zipf"),
    Case(100_000, 10_000, 100, "uniform"),
    Case(100_000, 10_000, 100, "zipf"),
    Case(1_000_000, 512, 10, "zipf"),
    Case(10_000, 10_000, 10, "uniform"),
    Case(100_000, 10_000, 10, "uniform"),
    Case(10_000_000, 10_000, 10, "uniform"),
]


def eager(A: Tensor, transposed: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized loss of exp and its gradient by two sparse products."""
    f = torch.softmax(A @ x, 0)
    c = f - b
    return c @ c / 2, transposed @ (f * (c - f @ c))


def passes(case: Case) -> dict[str, float]:
    """Seconds of ours and of the peers."""
    crow, col, values = case.data()
    n, d = case.n, case.d
    x, v, b = torch.randn(d, device="cuda"), torch.randn(d, device="cuda"), torch.rand(n, device="cuda") / n
    w, pattern = torch.randn(1, n, device="cuda"), (crow, col)
    logits = OPS._regression_matvec(values, x, *pattern)
    numbers = OPS._regression_statistics(logits, None, None, b, None, None, *EXP)[0]
    rows = OPS._regression_rows(logits, numbers, b, None, None, *EXP)
    listed: dict[str, Callable[[], Any]] = {
        "loss and gradient": lambda: OPS._regression_evaluate(values, b, x, None, None, *EXP, *pattern),
        "Hessian product": lambda: OPS._regression_product(values, b, x, None, None, v, *EXP, "full", *pattern),
        "A x": lambda: OPS._regression_matvec(values, x, *pattern),
        "A^T w": lambda: OPS._regression_transposed(values, w, False, *pattern, d),
    }
    if d <= 2048:
        listed["Hessian"] = lambda: OPS._regression_curvature(values, rows, numbers, "full", *pattern, d)
    A = torch.sparse_csr_tensor(crow, col, values, (n, d))
    across = torch.sparse_csc_tensor(crow, col, values, (d, n))  # A's transpose, without a copy
    built = across.to_sparse_csr()
    listed |= {
        "torch, A^T at hand: loss and gradient": lambda: eager(A, built, b, x),
        "torch: loss and gradient": lambda: eager(A, across, b, x),
        "torch: A x": lambda: A @ x,
        "torch, A^T at hand: A^T w": lambda: built @ w[0],
        "torch: A^T w": lambda: across @ w[0],
    }
    return {name: seconds_of(f, ROUNDS) for name, f in listed.items()}


def main(arguments: list[str]) -> int:
    output, seconds = Path(arguments[0]), float(arguments[1]) if len(arguments) > 1 else 60.0
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 1
    warnings.filterwarnings("ignore", "Sparse (CS[RC] tensor support is in beta state|invariant checks are implicitly disabled)")
    start = time.monotonic()
    result = {**header("regression_csr"), "copy_gb_s": copy_bandwidth() / 1e9, "timings": [], "left_out": []}
    print(f"{result['gpu']}, torch {result['torch']}, path {result['path']}", flush=True)
    for case in CASES:
        if seconds - (time.monotonic() - start) < 4:
            result["left_out"].append(asdict(case))
            continue
        found = passes(case)
        result["timings"].append({**asdict(case), "seconds": found})
        times = ", ".join(f"{name} {1e6 * t:.0f} us" for name, t in found.items())
        print(f"n {case.n:.0e} d {case.d} {case.each} a row, {case.columns}: {times}", flush=True)
        write_json(output, result)
        torch.cuda.empty_cache()
    write_json(output, result)
    if result["left_out"]:
        print(f"{len(result['left_out'])} cases left out: the time was over")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
