# SPDX-License-Identifier: BSD-3-Clause
"""Matrix regression on one GPU: loss and gradient beside the same formula in PyTorch, eager and compiled; products, all gradients,
targets that are not formed, and peak memory.

Interleaved, timed by CUDA events, medians. Stops in time and says what it left out. Run by benchmarks/gpu_check.py, or alone:
python benchmarks/gpu_matrix_regression.py OUTPUT.json [SECONDS]
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_attention import ROUNDS, attempt, header, timed
from matrix_regression import COMPILED, EAGER, OURS, PRODUCT, SIDES, Case, contestants
from timing import summary, write_json

CASES = [
    Case("exp", "normalized", 1, 2048),
    Case("exp", "normalized", 1, 8192),
    Case("exp", "normalized", 16, 2048),
    Case("cosh", "rescaled", 16, 2048),
    Case("exp", "normalized", 16, 2048, 128),
]
# Products of the map's size in each: scores and what they are multiplied with, formed anew in every pass. Statistics 1, gradient 2,
# moments 3, product 3, columns 2.
PRODUCTS = {OURS: 3, PRODUCT: 7, SIDES: 5}


def disagreement(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def measure(case: Case) -> dict[str, Any]:
    errors: dict[str, str] = {}
    listed = [c for c in contestants(case) if attempt(c, errors)]
    results = {c.name: c.prepare()() for c in listed if c.name in (OURS, EAGER, COMPILED)}
    for name, result in results.items():
        if EAGER in results and not disagreement(result, results[EAGER]) < 1e-3:
            errors[name] = f"differs from {EAGER} by {disagreement(result, results[EAGER]):.1e}"
    del results
    samples: dict[str, list[float]] = {c.name: [] for c in listed}
    peaks: dict[str, int] = {}
    for turn in range(ROUNDS):
        for contestant in listed:
            torch.cuda.empty_cache()
            samples[contestant.name].append(timed(contestant))
            if turn == 0:
                piece = contestant.prepare()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                piece()
                peaks[contestant.name] = torch.cuda.max_memory_allocated() - before
    figures = {name: {**summary(seconds), "peak_bytes": peaks[name]} for name, seconds in samples.items()}
    for name, products in PRODUCTS.items():
        if name in figures:
            flop = products * 2 * case.heads * case.length**2 * case.columns
            figures[name]["tflops"] = flop / figures[name]["seconds"] / 1e12
    ours = figures[OURS]["seconds"] if OURS in figures else float("nan")
    ratios = {name: f["seconds"] / ours for name, f in figures.items() if name != OURS}
    return {**asdict(case), "contestants": figures, "ratios": ratios, "errors": errors}


def line(entry: dict[str, Any]) -> str:
    what = f"{entry['kind']} {entry['form']} heads {entry['heads']} n {entry['length']} d {entry['columns']}"
    if OURS not in entry["contestants"]:
        return f"{what}: failed: {entry['errors'].get(OURS, 'no result')}"
    ours = entry["contestants"][OURS]
    told = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in entry["ratios"].items())
    peaks = ", ".join(f"{f['peak_bytes'] / 2**20:.0f} {name}" for name, f in entry["contestants"].items())
    wrong = f" ERRORS {entry['errors']}" if entry["errors"] else ""
    return f"{what}: {1e3 * ours['seconds']:.2f} ms, {ours['tflops']:.1f} TF/s; {told}; peak MiB {peaks}{wrong}"


def main(arguments: list[str]) -> int:
    output, seconds = Path(arguments[0]), float(arguments[1]) if len(arguments) > 1 else 80.0
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 1
    start = time.monotonic()
    torch.set_default_device("cuda")
    result = {**header("matrix_regression"), "timings": [], "left_out": []}
    print(f"matrix regression, {result['gpu']}, path {result['path']}", flush=True)
    for case in CASES:
        if time.monotonic() - start > seconds:
            result["left_out"].append(asdict(case))
            continue
        result["timings"].append(measure(case))
        print(line(result["timings"][-1]), flush=True)
        write_json(output, result)
    write_json(output, result)
    if result["left_out"]:
        print(f"{len(result['left_out'])} cases left out: the time was over")
    return 0 if all(OURS in entry["contestants"] and not entry["errors"] for entry in result["timings"]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
