# SPDX-License-Identifier: BSD-3-Clause
"""Regressions on one GPU: passes over A against the bandwidth of a copy, and a whole solve against torch.optim.LBFGS.

Timed by CUDA events, medians, on data larger than the last-level cache. Stops in time and says what it left out.

python benchmarks/gpu_regression.py OUTPUT.json [SECONDS]
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_attention import header
from timing import write_json
from torch import Tensor

from torch_rescaled import Regression, Solution, solve

OPS = torch.ops.torch_rescaled
EXP = ("exp", "normalized")
ROUNDS = 9
SOLVES = 5  # of which the median time counts
GAP = 1e-6


@dataclass(frozen=True)
class Case:
    n: int
    d: int
    dtype: str

    @property
    def bytes_of_A(self) -> int:
        return self.n * self.d * getattr(torch, self.dtype).itemsize

    def data(self, condition: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """A, whose columns' sizes differ by up to `condition`, b with 5 % of noise, and x."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        size = torch.logspace(0, -math.log10(condition), self.d, device="cuda", dtype=wide)
        A = torch.empty(self.n, self.d, device="cuda", dtype=dtype)
        for part in A.split(1 << 20):  # no copy of A in float32
            part.copy_(size * torch.randn(part.shape, device="cuda", dtype=wide))
        x = torch.randn(self.d, device="cuda", dtype=wide) / size / self.d**0.5
        b = torch.softmax(OPS._regression_matvec(A, x).double(), 0)
        return A, (b * (1 + 0.05 * torch.randn(self.n, device="cuda"))).to(wide), x


CASES = [
    Case(10_000_000, 64, "float32"),
    Case(1_000_000, 256, "float32"),
    Case(1_000_000, 16, "float32"),
    Case(10_000_000, 64, "bfloat16"),
    Case(1_000_000, 256, "bfloat16"),
    Case(10_000_000, 8, "float32"),
    Case(1_000_000, 512, "float32"),
    Case(1_000_000, 128, "float64"),
]


def eager(A: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized loss of exp and its gradient by two products: A is read twice."""
    f = torch.softmax((A @ x.to(A.dtype)).to(b.dtype), 0)
    c = f - b
    return c @ c / 2, A.T @ (f * (c - f @ c)).to(A.dtype)


def seconds_of(f: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median on the GPU."""
    f(), f()
    samples = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000)  # in which the CPU gets ahead: launches are not what is timed
        start.record()
        f()
        end.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(end) / 1e3)
    return statistics.median(samples)


def copy_bandwidth(size: int = 1 << 31) -> float:
    """Bytes a second, read and written, of a large copy."""
    source, target = (torch.empty(size, device="cuda", dtype=torch.uint8) for _ in range(2))
    return 2 * size / seconds_of(lambda: target.copy_(source))


def share(seconds: float, size: int, bandwidth: float) -> dict[str, float]:
    return {"milliseconds": seconds * 1e3, "share_of_copy": size / seconds / bandwidth}


def compiled_evaluate(case: Case, bandwidth: float) -> dict[str, float]:
    A, b, x = case.data()
    compiled = torch.compile(eager)
    return share(seconds_of(lambda: compiled(A, b, x)), case.bytes_of_A + 4 * case.n, bandwidth)


def passes(case: Case, bandwidth: float) -> dict[str, Any]:
    A, b, x = case.data()
    v, vector = torch.randn_like(x), 4 * case.n
    logits = OPS._regression_matvec(A, x)
    numbers = OPS._regression_statistics(logits, None, None, b, None, None, *EXP)[0]
    rows = OPS._regression_rows(logits, numbers, b, None, None, *EXP)
    steps = torch.linspace(0, 1, 8, device="cuda", dtype=torch.float64)
    direction = torch.randn_like(logits)
    # What is timed, and the bytes that must move.
    listed: dict[str, tuple[Callable[[], Any], int]] = {
        "evaluate": (lambda: OPS._regression_evaluate(A, b, x, None, None, *EXP), case.bytes_of_A + vector),
        "product": (lambda: OPS._regression_product(A, b, x, None, None, v, *EXP, "full"), case.bytes_of_A + vector),
        "matvec": (lambda: OPS._regression_matvec(A, v), case.bytes_of_A + vector),
        "curvature": (lambda: OPS._regression_curvature(A, rows, numbers, "full"), case.bytes_of_A + 7 * vector),
        "gauss_newton": (lambda: OPS._regression_gauss_newton(A, b, x, None, *EXP), case.bytes_of_A + vector),
        "statistics of 8 steps": (
            lambda: OPS._regression_statistics(logits, direction, steps, b, None, None, *EXP),
            3 * vector,
        ),
        "rows": (lambda: OPS._regression_rows(logits, numbers, b, None, None, *EXP), 9 * vector),
        "model": (lambda: OPS._regression_model(rows, direction), 7 * vector),
        "eager evaluate": (lambda: eager(A, b, x), case.bytes_of_A + vector),
    }
    times = {name: share(seconds_of(f), size, bandwidth) for name, (f, size) in listed.items()}
    return {**asdict(case), "passes": times}


def loss_of(A: Tensor, b: Tensor, x: Tensor) -> float:
    numbers = OPS._regression_evaluate(A, b, x, None, None, *EXP)[0]
    value: float = numbers[1].item()  # log_scale is 0 in the normalized form
    return value


class Reached(Exception):
    """The loss is as low as was asked for."""


def by_lbfgs(A: Tensor, b: Tensor, best: float, seconds: float) -> dict[str, Any]:
    """From x = 0 until the loss is within GAP of the best, or the time is over. The loss is scaled to 1 at the start."""
    x = torch.zeros(A.shape[1], device="cuda", dtype=b.dtype)
    first = loss_of(A, b, x)
    optimizer = torch.optim.LBFGS([x], max_iter=1000, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe")
    calls, gap = 0, float("inf")
    torch.cuda.synchronize()
    start = time.perf_counter()

    def closure() -> Tensor:
        nonlocal calls, gap
        calls += 1
        loss, x.grad = eager(A, b, x)
        x.grad = x.grad / first
        gap = loss.item() / best - 1  # as the optimizer itself does: one synchronization
        if gap <= GAP or time.perf_counter() - start > seconds:
            raise Reached
        return loss / first

    try:
        for _ in range(20):
            optimizer.step(closure)
    except Reached:
        pass
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "reads": 2 * calls, "gap": gap, "reached": gap <= GAP}


def solves(case: Case, condition: float, seconds: float, floor: float) -> dict[str, Any]:
    """`floor`: seconds of A s and a curvature, two reads and a Gram."""
    A, b, _ = case.data(condition)
    problem = Regression(A, b, form="normalized")
    zero = torch.zeros(case.d, device="cuda")
    result: dict[str, Any] = {**asdict(case), "condition": condition, "floor_seconds": floor}

    def timed(x0: Tensor | None) -> tuple[float, Solution]:
        torch.cuda.synchronize()
        start = time.perf_counter()
        solution = solve(problem, x0, method="newton", gtol=GAP)
        torch.cuda.synchronize()
        return time.perf_counter() - start, solution

    for name, x0 in (("newton", None), ("newton from 0", zero)):
        timed(x0)  # libraries are loaded, memory is taken from the driver
        runs = [timed(x0) for _ in range(SOLVES)]
        spent, solution = statistics.median(seconds for seconds, _ in runs), runs[-1][1]
        iterations = int(solution.number("iterations"))
        result[name] = {
            "seconds": spent,
            "iterations": iterations,
            "reads": int(solution.number("reads")),
            "status": str(solution.status),
            "iteration_over_floor": spent / max(iterations, 1) / floor,
        }
        best = loss_of(A, b, solution.x)
    result["lbfgs"] = by_lbfgs(A, b, best, seconds)
    return result


def main(arguments: list[str]) -> int:
    output, seconds = Path(arguments[0]), float(arguments[1]) if len(arguments) > 1 else 90.0
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 1
    start, bandwidth = time.monotonic(), copy_bandwidth()
    result = {**header("regression"), "copy_gb_s": bandwidth / 1e9, "timings": [], "left_out": []}
    print(f"{result['gpu']}, torch {result['torch']}, path {result['path']}, copy {bandwidth / 1e9:.0f} GB/s", flush=True)
    table = []

    def left() -> float:
        return seconds - (time.monotonic() - start)

    for case in CASES:
        if left() < 8:
            result["left_out"].append(asdict(case))
            continue
        entry = passes(case, bandwidth)
        result["timings"].append(entry)
        shares = ", ".join(f"{k} {t['milliseconds']:.3f} ms {t['share_of_copy']:.2f}" for k, t in entry["passes"].items())
        table.append(f"n {case.n:.0e} d {case.d} {case.dtype}: {shares}")
        torch.cuda.empty_cache()
        if case is CASES[0] and left() > 15:
            floor = sum(entry["passes"][name]["milliseconds"] for name in ("matvec", "curvature")) / 1e3
            result["solves"] = []
            for condition in (1.0, 1e3):
                found = solves(case, condition, min(20.0, left() / 3), floor)
                result["solves"].append(found)
                of, peer = found["newton"], found["lbfgs"]
                table.append(
                    f"solve, condition {condition:.0e}: newton {of['seconds'] * 1e3:.1f} ms, {of['iterations']} iterations of "
                    f"{of['iteration_over_floor']:.2f} floors; from 0 {found['newton from 0']['seconds'] * 1e3:.1f} ms, "
                    f"{found['newton from 0']['iterations']} of {found['newton from 0']['iteration_over_floor']:.2f}; LBFGS "
                    f"{peer['seconds'] * 1e3:.0f} ms ({peer['seconds'] / of['seconds']:.1f}x), gap {peer['gap']:.1e}"
                )
                torch.cuda.empty_cache()
            torch.cuda.empty_cache()
        write_json(output, result)
    if result["timings"] and left() > 15:  # last: the compiler's processes stay, and slow down what the CPU does
        found = result["timings"][0]["passes"]["torch.compile evaluate"] = compiled_evaluate(CASES[0], bandwidth)
        table.append(f"torch.compile evaluate, the first case: {found['milliseconds']:.3f} ms")
    write_json(output, result)
    print("\n".join(table))
    if result["left_out"]:
        print(f"{len(result['left_out'])} cases left out: the time was over")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
