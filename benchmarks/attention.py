# SPDX-License-Identifier: BSD-3-Clause
"""Attention forward, backward, JVP and double backward on CPU against PyTorch's scaled_dot_product_attention.

python benchmarks/attention.py            # the figures of the README: about 15 minutes on an idle machine
python benchmarks/attention.py --quick    # a look, within 30 seconds; writes only where --output says
python benchmarks/report.py               # the table in the README from the results
python benchmarks/attention.py --shapes   # the figures of docs/attention.md at many shapes, with a picture: about an hour
python benchmarks/attention.py --types    # bfloat16 and float64 at a few shapes, for docs/attention.md: about 10 minutes
python benchmarks/attention.py --pieces forward --queries 1 4 --lengths 512 2048 8192 --heads 1 16 --output FILE  # few queries
python benchmarks/attention.py --compiled --pieces forward backward --lengths 2048 --output FILE  # torch.compile, FlexAttention
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from contestants import OURS, UNITS, Case, contestants, require_agreement
from memory import measure_all
from roofline import draw_roofline
from timing import HERE, fma_peak, header, interleave, read_bandwidth, summary, write_json

RESULTS = HERE / "results" / "attention_cpu.json"
SHAPES = HERE / "results" / "attention_cpu_shapes.json"
TYPES = HERE / "results" / "attention_cpu_types.json"
PICTURE = HERE.parent / "docs" / "images" / "attention_roofline.png"
SCHEMA = 1
KINDS = ["exp", "cosh", "sinh", "signed"]
DEFAULT_KINDS = ["exp", "cosh", "signed"]  # sinh is signed attention and a division


def arguments(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def several(name: str, default: list[Any], **details: Any) -> None:
        kind = type(default[0])
        parser.add_argument(name, nargs="*", type=kind, default=default, metavar=kind.__name__, **details)

    several("--pieces", list(UNITS), choices=list(UNITS))
    several("--kinds", DEFAULT_KINDS, choices=KINDS)
    several("--dtypes", ["float32"], choices=["float32", "bfloat16", "float16", "float64"])
    several("--masks", ["full", "causal"], choices=["full", "causal"])
    several("--head-sizes", [64, 128])
    several("--lengths", [1024, 2048])
    several("--heads", [1], help="batch times heads")
    parser.add_argument("--queries", nargs="*", type=int, default=[None], help="default: as many as keys")
    several("--threads", [1, 2])
    several("--memory-lengths", [1024, 2048, 8192], help="none: no memory table")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each contestant, at least")
    parser.add_argument("--seconds", type=float, default=0.3, help="measured time of each contestant, at least")
    parser.add_argument("--most-gflop", type=float, default=float("inf"), help="leave out calls of more than this")
    parser.add_argument("--compiled", action="store_true", help="also what torch.compile makes of the formula, and FlexAttention")
    parser.add_argument("--shapes", action="store_true", help="exp at many shapes, with a picture of all rates under their limits")
    parser.add_argument("--types", action="store_true", help="exp in bfloat16 and float64, at a few shapes")
    parser.add_argument("--quick", action="store_true", help="exp, full, head size 64, length 512, and little memory")
    parser.add_argument("--output", type=Path, help=f"JSON file (default {RESULTS}, with --quick none)")
    options = parser.parse_args(command_line)
    if options.quick:
        parser.set_defaults(kinds=["exp"], masks=["full"], head_sizes=[64], lengths=[512], heads=[1], seconds=0.02)
        parser.set_defaults(memory_lengths=[512, 1024])
        options = parser.parse_args(command_line)
    elif options.shapes:
        parser.set_defaults(kinds=["exp"], head_sizes=[32, 64, 128, 256], lengths=[64, 128, 256, 512, 2048, 8192], heads=[1, 4, 16])
        parser.set_defaults(seconds=0.1, memory_lengths=[], most_gflop=40.0, output=SHAPES)
        options = parser.parse_args(command_line)
    elif options.types:
        parser.set_defaults(kinds=["exp"], dtypes=["bfloat16", "float64"], lengths=[512, 2048], heads=[1, 16], output=TYPES)
        parser.set_defaults(seconds=0.1, memory_lengths=[], most_gflop=40.0)
        options = parser.parse_args(command_line)
    elif options.output is None:
        options.output = RESULTS
    return options


def grid(options: argparse.Namespace) -> Iterator[Case]:
    """Every combination for exp; the other kinds at the largest length and the first number of heads."""
    for piece, kind, dtype, mask in itertools.product(options.pieces, options.kinds, options.dtypes, options.masks):
        everything = kind == "exp"
        for heads in options.heads if everything else options.heads[:1]:
            for length in options.lengths if everything else [max(options.lengths)]:
                for head_size, queries in itertools.product(options.head_sizes, options.queries):
                    case = Case(piece, kind, dtype, mask == "causal", heads, length, head_size, queries)
                    if case.flop <= 1e9 * options.most_gflop:
                        yield case


def memory_grid(options: argparse.Namespace) -> Iterator[Case]:
    """One matrix, the first head size: how memory grows with the length."""
    for piece, length in itertools.product(options.pieces, options.memory_lengths):
        yield Case(piece, dtype=options.dtypes[0], length=length, head_size=options.head_sizes[0])


def time_case(case: Case, threads: int, options: argparse.Namespace, peak: float | None) -> dict[str, Any]:
    """Medians of all contestants, their rate on the standard count of flop, and how often faster ours is than each."""
    torch.set_num_threads(threads)
    listed = contestants(case, options.compiled)
    require_agreement(case, listed)
    samples = interleave(listed, options.repeats, options.seconds)
    figures = {name: summary(seconds) for name, seconds in samples.items()}
    for figure in figures.values():
        figure["gflops"] = case.flop / figure["seconds"] / 1e9
        if peak is not None and case.dtype == "float32":
            figure["of_peak"] = figure["gflops"] / peak
    ours = figures[OURS]["seconds"]
    ratios = {name: figure["seconds"] / ours for name, figure in figures.items() if name != OURS}
    return {**asdict(case), "threads": threads, "contestants": figures, "ratios": ratios}


def line(entry: dict[str, Any], width: int) -> str:
    """One line of the console output."""
    mask = "causal" if entry["is_causal"] else "full"
    queries = f" queries {entry['queries']}" if entry["queries"] else ""
    sizes = f"B*H {entry['heads']}{queries} N {entry['length']} D {entry['head_size']} threads {entry['threads']}"
    ours = entry["contestants"][OURS]
    peak = f" ({ours['of_peak']:.0%} of peak)" if "of_peak" in ours else ""
    ratios = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in entry["ratios"].items())
    what = f"{entry['piece']:{width}} {entry['kind']} {entry['dtype']} {mask}"
    return f"{what} {sizes}: {ours['gflops']:.0f} GF/s{peak}; {ratios}"


def hold_against_peak(peak: dict[str, float], again: dict[str, float], timings: list[dict[str, Any]]) -> None:
    """The peak measured before the run, and again after it: a disturbed measurement is too low, so the higher one holds."""
    for threads, value in again.items():
        peak[threads] = max(value, peak[threads])
    for timing in timings:
        for figure in timing["contestants"].values():
            if "of_peak" in figure:
                figure["of_peak"] = figure["gflops"] / peak[str(timing["threads"])]


def main(command_line: list[str] | None = None) -> None:
    options = arguments(command_line)
    name = "attention_shapes" if options.shapes else "attention_types" if options.types else "attention"
    result: dict[str, Any] = {"schema": SCHEMA, "benchmark": name, **header(options.threads)}
    if options.shapes:
        result["read_gb_s"] = read_bandwidth(options.threads)
    print(f"{result['machine']}, {result['isa']}, torch {result['torch']}, peak {result['peak_gflops']} GF/s")
    timings = []
    for case, threads in itertools.product(grid(options), options.threads):
        timings.append(time_case(case, threads, options, result["peak_gflops"].get(str(threads))))
        print(line(timings[-1], max(map(len, UNITS))), flush=True)
    hold_against_peak(result["peak_gflops"], fma_peak(options.threads), timings)
    memory = measure_all(memory_grid(options), max(options.threads), "contestants")
    for entry in memory:
        mebibytes = entry["peak_bytes"] / 2**20
        print(f"memory {entry['piece']} N {entry['length']}: {entry['contestant']} {mebibytes:.1f} MiB")
    result |= {"timings": timings, "memory": memory}
    if options.output is not None:
        write_json(options.output, result)
    if options.shapes and options.output == SHAPES:
        draw_roofline(result, PICTURE)


if __name__ == "__main__":
    main()
