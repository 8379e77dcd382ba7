# SPDX-License-Identifier: BSD-3-Clause
"""Writes the benchmark table of the README from the JSON results.

python benchmarks/report.py            # rewrites the part of README.md between the markers
python benchmarks/report.py --check    # fails when README.md does not show these results
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- benchmarks:attention -->", "<!-- /benchmarks:attention -->"
OURS = "torch_rescaled"
# Softmax attention over [K; -K] is cosh or signed attention; sinh is signed attention divided by its balance.
PEER_COMPUTES = {
    "exp": "",
    "cosh": ", doubled keys",
    "signed": ", doubled keys",
    "sinh": ", doubled keys, not divided by the balance",
}
NAMES = {"forward": "forward", "backward": "backward", "jvp": "JVP", "double_backward": "double backward"}


def markdown_table(rows: list[list[str]]) -> str:
    """The first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def peer_of(entry: dict[str, Any]) -> str:
    """The contestant from PyTorch that a user would call: flash, or the math path."""
    return next(name for name in entry["ratios"] if name in ("sdpa flash", "sdpa math"))


def cell(entries: list[dict[str, Any]]) -> str:
    """Ratios, then rates, of the runs with one thread, two threads, ..."""
    if not entries:
        return ""
    entries = sorted(entries, key=lambda entry: entry["threads"])
    ratios = ", ".join(f"{entry['ratios'][peer_of(entry)]:.2f}x" for entry in entries)
    rates = ", ".join(f"{entry['contestants'][OURS]['gflops']:.0f}" for entry in entries)
    return f"{ratios} ({rates})"


def timing_table(timings: list[dict[str, Any]]) -> str:
    """A row for each piece, kind, dtype, mask and B*H; a column for each size."""
    sizes = sorted({(entry["head_size"], entry["length"]) for entry in timings})
    several = len({entry["dtype"] for entry in timings}) > 1
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in timings:
        key = tuple(entry[field] for field in ("kind", "dtype", "piece", "is_causal", "heads"))
        groups.setdefault(key, []).append(entry)
    rows = [["", "against", "B·H", *(f"D {head_size}, N {length}" for head_size, length in sizes)]]
    for (kind, dtype, piece, is_causal, heads), entries in groups.items():
        name = ", ".join(filter(None, [NAMES[piece], kind, dtype if several else "", "causal" if is_causal else ""]))
        peer = peer_of(entries[0]) + PEER_COMPUTES[kind]
        at_size = [[e for e in entries if (e["head_size"], e["length"]) == size] for size in sizes]
        rows.append([name, peer, str(heads), *map(cell, at_size)])
    return markdown_table(rows)


def mebibytes(count: float) -> str:
    value = count / 2**20
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def memory_table(memory: list[dict[str, Any]]) -> str:
    """A row for each piece and contestant; a column for each length."""
    lengths = sorted({entry["length"] for entry in memory})
    rows = [["peak MiB", "", *(f"N {length}" for length in lengths)]]
    for piece, contestant in dict.fromkeys((entry["piece"], entry["contestant"]) for entry in memory):
        row = [entry for entry in memory if (entry["piece"], entry["contestant"]) == (piece, contestant)]
        by_length = {entry["length"]: entry["peak_bytes"] for entry in row}
        rows.append([NAMES[piece], contestant, *(mebibytes(by_length[n]) if n in by_length else "" for n in lengths)])
    return markdown_table(rows)


def markdown(result: dict[str, Any]) -> str:
    """Everything between the markers."""
    machine, timings, memory = result["machine"], result["timings"], result["memory"]
    threads = sorted({entry["threads"] for entry in timings})
    peak = ", ".join(f"{result['peak_gflops'][str(n)]:.0f}" for n in threads if str(n) in result["peak_gflops"])
    text = [
        f"{machine['cpu']}, {result['isa']}, torch {result['torch']}, commit {result['commit']}, {result['date']}. Each"
        " cell: time of PyTorch's `scaled_dot_product_attention` over ours, and in parentheses our GF/s on the standard"
        f" count of flop, with {' and '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
        + (f"; the FMA peak measured in the same run is {peak} GF/s." if peak else "."),
        timing_table(timings),
    ]
    if memory:
        one = memory[0]
        text += [
            f"Peak memory above the inputs, the forward included, {one['dtype']}, B·H {one['heads']}, D {one['head_size']},"
            " as the operating system saw it (to about 0.3 MiB):",
            memory_table(memory),
        ]
    return "\n\n".join(text)


def replaced(readme: str, content: str) -> str:
    """The README with `content` between the markers."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"expected the markers {BEGIN} and {END} in the README")
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "attention_cpu.json")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the README differs")
    options = parser.parse_args(command_line)
    readme = options.readme.read_text()
    wanted = replaced(readme, markdown(json.loads(options.results.read_text())))
    if options.check:
        if readme != wanted:
            print(f"{options.readme} does not show {options.results}: run python benchmarks/report.py", file=sys.stderr)
        return int(readme != wanted)
    options.readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
