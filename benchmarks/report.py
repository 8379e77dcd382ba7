# SPDX-License-Identifier: BSD-3-Clause
"""Writes the tables of the README and the pages of docs/ from the JSON results.

python benchmarks/report.py            # rewrites the parts between the markers
python benchmarks/report.py --check    # fails when they do not show these results
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from report_csr import regression_csr_markdown
from report_gpu import gpu_markdown, matrix_regression_gpu_markdown, regression_csr_gpu_markdown, regression_gpu_markdown
from report_tables import NAMES, OURS, markdown_table, replaced, where

HERE = Path(__file__).resolve().parent
# Softmax attention over [K; -K] is cosh or signed attention; sinh is signed attention divided by its balance.
PEER_COMPUTES = {
    "exp": "",
    "cosh": ", doubled keys",
    "signed": ", doubled keys",
    "sinh": ", doubled keys, not divided by the balance",
}


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
    for piece, contestant in dict.fromkeys((entry.get("piece", "loss and gradients"), entry["contestant"]) for entry in memory):
        row = [entry for entry in memory if (entry.get("piece", piece), entry["contestant"]) == (piece, contestant)]
        by_length = {entry["length"]: entry["peak_bytes"] for entry in row}
        rows.append([NAMES.get(piece, piece), contestant, *(mebibytes(by_length[n]) if n in by_length else "" for n in lengths)])
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


def types_markdown(result: dict[str, Any]) -> str:
    """As `markdown`, without memory; the peak is float32's, and no limit of bfloat16."""
    threads = sorted({entry["threads"] for entry in result["timings"]})
    peak = ", ".join(f"{result['peak_gflops'][str(n)]:.0f}" for n in threads if str(n) in result["peak_gflops"])
    text = (
        f"{where(result)} Each cell: PyTorch's time over ours, and in parentheses our GF/s on the standard count of flop, with"
        f" {' and '.join(map(str, threads))} thread{'s' if threads != [1] else ''}; the float32 FMA peak is {peak} GF/s."
    )
    return "\n\n".join([text, timing_table(result["timings"])])


def shapes_markdown(result: dict[str, Any]) -> str:
    """Lowest and median ratio over lengths and B·H, and the best share of the peak; a row for each piece, mask and lengths."""
    timings = result["timings"]
    threads = sorted({entry["threads"] for entry in timings})
    head_sizes = sorted({entry["head_size"] for entry in timings})
    lengths = sorted({entry["length"] for entry in timings})
    groups = [[n for n in lengths if n < 512], [n for n in lengths if n >= 512]]
    rows = [["", "against", "N", *(f"D {head_size}" for head_size in head_sizes)]]
    for piece, is_causal in dict.fromkeys((entry["piece"], entry["is_causal"]) for entry in timings):
        of_piece = [e for e in timings if (e["piece"], e["is_causal"]) == (piece, is_causal)]
        for group in filter(None, groups):
            cells = []
            for head_size in head_sizes:
                parts = []
                for count in threads:
                    found = [e for e in of_piece if (e["head_size"], e["threads"]) == (head_size, count) and e["length"] in group]
                    ratios = [e["ratios"][peer_of(e)] for e in found]
                    of_peak = max(e["contestants"][OURS].get("of_peak", 0.0) for e in found)
                    parts.append(f"{min(ratios):.2f}, {statistics.median(ratios):.2f} ({of_peak:.0%})")
                cells.append(" / ".join(parts))
            name = NAMES[piece] + (", causal" if is_causal else "")
            rows.append([name, peer_of(of_piece[0]), " to ".join(str(n) for n in sorted({group[0], group[-1]})), *cells])
    heads = ", ".join(str(h) for h in sorted({entry["heads"] for entry in timings}))
    peak = ", ".join(f"{result['peak_gflops'][str(n)]:.0f}" for n in threads if str(n) in result["peak_gflops"])
    text = (
        f"{where(result)} float32, exp, N {', '.join(map(str, lengths))}, B·H {heads}, the largest calls left out. Each cell: the"
        " lowest and the median of PyTorch's time over ours, and the best share of the measured FMA peak"
        f" ({peak} GF/s), for {' / '.join(map(str, threads))} threads."
    )
    return "\n\n".join([text, markdown_table(rows)])


def loss_markdown(result: dict[str, Any]) -> str:
    """Times over ours, by threads, and peak memory."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in result["timings"]:
        key = tuple(entry[field] for field in ("form", "kind", "heads", "length", "head_size"))
        groups.setdefault(key, []).append(entry)
    peers = list(dict.fromkeys(name for entry in result["timings"] for name in entry["ratios"]))
    rows = [["form", "kind", "B·H", "N", "D", *(f"{peer} / ours" for peer in peers)]]
    for key, entries in groups.items():
        ratios = [", ".join(f"{e['ratios'][peer]:.2f}x" for e in entries if peer in e["ratios"]) for peer in peers]
        rows.append([*map(str, key), *ratios])
    threads = " and ".join(str(n) for n in sorted({entry["threads"] for entry in result["timings"]}))
    text = [
        f"{where(result)} Time of loss and gradients, float32, with {threads} threads:",
        markdown_table(rows),
    ]
    if result["memory"]:
        text += ["Peak memory above the inputs, normalized, exp, B·H 1:", memory_table(result["memory"])]
    return "\n\n".join(text)


def curvature_markdown(result: dict[str, Any]) -> str:
    """Products over gradients, by threads; and their peak memory."""
    case, timings = result["case"], result["timings"]
    attentions = list(dict.fromkeys(entry["attention"] for entry in timings))
    columns = ["no attention" if attention == "none" else f"{attention} attention" for attention in attentions]
    rows = [["over the gradient's time", *columns]]
    for product in dict.fromkeys(entry["product"] for entry in timings):
        cells = []
        for attention in attentions:
            found = [e for e in timings if (e["product"], e["attention"]) == (product, attention)]
            ratios = ", ".join(f"{e['over_gradient']:.2f}x" for e in sorted(found, key=lambda e: e["threads"]))
            milliseconds = ", ".join(f"{1e3 * e['seconds']:.0f}" for e in sorted(found, key=lambda e: e["threads"]))
            cells.append(f"{milliseconds} ms" if product == "gradient" else f"{ratios} ({milliseconds} ms)" if found else "")
        rows.append([product, *cells])
    memory = [["peak MiB", *columns]]
    for product in dict.fromkeys(entry["product"] for entry in result["memory"]):
        peaks = {e["attention"]: e["peak_bytes"] for e in result["memory"] if e["product"] == product}
        memory.append([product, *(mebibytes(peaks[attention]) for attention in attentions)])
    threads = " and ".join(str(n) for n in sorted({entry["threads"] for entry in timings}))
    text = [
        f"{where(result)} The example's model, width {case['width']}, {case['depth']} layers, {case['batch']} sequences of"
        f" {case['length']} bytes, {threads} threads; a further product on a kept graph is `retained`:",
        markdown_table(rows),
    ]
    if result["memory"]:
        text.append(markdown_table(memory))
    return "\n\n".join(text)


def matrix_regression_markdown(result: dict[str, Any]) -> str:
    """Times over ours, by threads, and peak memory beside the arguments."""
    threads = sorted({entry["threads"] for entry in result["timings"]})
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in result["timings"]:
        groups.setdefault(tuple(entry[field] for field in ("kind", "form", "length", "columns")), []).append(entry)
    peers = list(result["timings"][0]["ratios"])
    rows = [["kind", "form", "n", "d", "ours, ms", *(f"{peer} / ours" for peer in peers)]]
    for key, entries in groups.items():
        entries = sorted(entries, key=lambda e: e["threads"])
        milliseconds = ", ".join(f"{1e3 * e['contestants'][OURS]['seconds']:.0f}" for e in entries)
        rows.append([*map(str, key), milliseconds, *(", ".join(f"{e['ratios'][peer]:.2f}" for e in entries) for peer in peers)])
    lengths = sorted({entry["length"] for entry in result["memory"]})
    memory = [["peak MiB beside the arguments", *(f"n {n}" for n in lengths)]]
    for name in dict.fromkeys(entry["contestant"] for entry in result["memory"]):
        by_length = {e["length"]: mebibytes(e["peak_bytes"]) for e in result["memory"] if e["contestant"] == name}
        memory.append([name, *(by_length[n] for n in lengths)])
    text = [
        f"{where(result)} Loss and gradient in X, float32, n1 = n2 = n, with {' and '.join(map(str, threads))} "
        f"thread{'s' if threads != [1] else ''}; a "
        "teacher has queries and keys of d columns, a sparse target 16 components a row; what is not eager or compiled is ours:",
        markdown_table(rows),
        markdown_table(memory),
    ]
    return "\n\n".join(text)


def map_solvers_markdown(result: dict[str, Any]) -> str:
    """Every method of ours, and the setting of the others that is the first at 1e-6, else at 1e-3, else the lowest at the end."""
    gaps = list(next(iter(next(iter(result["cases"][0]["contestants"].values())).values()))["seconds_to"])
    rows = [["problem", "contestant", *(f"to {gap}, s" for gap in gaps), "over ours", "evaluations", "ends above the best by"]]

    def rank(item: tuple[str, dict[str, Any]]) -> list[float]:
        seconds = [item[1]["seconds_to"][gap] for gap in reversed(gaps)]
        return [*(float("inf") if s is None else s for s in seconds), item[1]["excess"]]

    for case in result["cases"]:
        ours = min(case["contestants"][OURS].items(), key=rank)[1]["seconds_to"][gaps[-1]]
        for contestant, settings in case["contestants"].items():
            as_written = {name: found for name, found in settings.items() if "projected" not in name}
            chosen = settings if contestant == OURS else dict(min(some.items(), key=rank) for some in (as_written, settings))
            for setting, found in chosen.items():
                seconds, evaluations = found["seconds_to"][gaps[-1]], found["evaluations_to"][gaps[-1]]
                # Who was stopped while the loss still fell would have needed longer than that.
                unfinished = f"> {case['limit'] / ours:.1f}x" if ours and found["end"] == "limit" else "-"
                ratio = f"{seconds / ours:.1f}x" if seconds and ours else unfinished
                cells = ["-" if (s := found["seconds_to"][gap]) is None else f"{s:.2f}" for gap in gaps]
                counted, end = "-" if evaluations is None else str(evaluations), f"{max(found['excess'], 0):.0e}"
                rows.append([case["case"], f"{contestant}: {setting}", *cells, ratio, counted, end])
    text = (
        f"{where(result)} CPU seconds, one thread, one start, to a loss above the best found by a fraction of 1e-3 and 1e-6,"
        " float64; of the peers the best setting, on X and Y themselves and of all. Evaluations are of loss and"
        " gradient, for torch_rescaled and Gauss-Newton iterations; `projected` has the best Y for every X, `whitened` variables"
        " for which queries and keys have unit covariance; `>` was stopped, `-` no longer fell:"
    )
    return "\n\n".join([text, markdown_table(rows)])


def best_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every optimizer and number of steps, in their order, that with the lowest loss at the end."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for run in runs:
        key = (run["optimizer"], run["steps"])
        if key not in best or run["points"][-1][1] < best[key]["points"][-1][1]:
            best[key] = run
    return list(best.values())


def optimizers_markdown(result: dict[str, Any]) -> str:
    rows = [["", "steps", "best learning rate", "held-out loss, nats", "TFLOP", "seconds"]]
    for run in best_runs(result["runs"]):
        _, loss, flops, seconds = run["points"][-1]
        rate = f"{run['rate']:g}" if run["optimizer"] in ("AdamW", "Muon") else ""
        rows.append([run["optimizer"], str(run["steps"]), rate, f"{loss:.3f}", f"{flops / 1e12:.1f}", f"{seconds:.0f}"])
    return "\n\n".join(
        [
            f"{where(result)} Batches of {result['batch_bytes']} bytes, {result['threads'][0]} threads:",
            markdown_table(rows),
        ]
    )


RENDERERS = {
    "attention": markdown,
    "attention_gpu": gpu_markdown,
    "matrix_regression_gpu": matrix_regression_gpu_markdown,
    "regression_csr": regression_csr_markdown,
    "regression_csr_gpu": regression_csr_gpu_markdown,
    "regression_gpu": regression_gpu_markdown,
    "attention_shapes": shapes_markdown,
    "attention_types": types_markdown,
    "loss": loss_markdown,
    "curvature": curvature_markdown,
    "map_solvers": map_solvers_markdown,
    "matrix_regression": matrix_regression_markdown,
    "optimizers": optimizers_markdown,
}
PAGES = {
    "attention_cpu.json": "README.md",
    "attention_gpu.json": "README.md",
    "attention_gpu_h100.json": "README.md",
    "attention_cpu_shapes.json": "docs/attention.md",
    "attention_cpu_shapes_avx512.json": "docs/attention.md",
    "attention_cpu_types.json": "docs/attention.md",
    "attention_cpu_types_avx512_bf16.json": "docs/attention.md",
    "attention_cpu_avx2.json": "docs/attention.md",
    "attention_cpu_kinds.json": "docs/attention.md",
    "loss_cpu.json": "docs/losses.md",
    "curvature_cpu.json": "docs/optim.md",
    "map_solvers_cpu.json": "docs/matrix_regression.md",
    "matrix_regression_cpu.json": "docs/matrix_regression.md",
    "matrix_regression_gpu.json": "docs/matrix_regression.md",
    "regression_csr_cpu.json": "docs/regression.md",
    "regression_csr_cpu_avx512.json": "docs/regression.md",
    "regression_csr_gpu.json": "docs/regression.md",
    "regression_gpu.json": "docs/regression.md",
    "optimizers_cpu.json": "docs/optim.md",
}

# Of a benchmark's second file; else the benchmark's name.
MARKERS = {
    "attention_cpu_avx2.json": "attention_avx2",
    "attention_cpu_kinds.json": "attention_kinds",
    "attention_cpu_types_avx512_bf16.json": "attention_types_avx512_bf16",
    "attention_cpu_shapes_avx512.json": "attention_shapes_avx512",
    "regression_csr_cpu_avx512.json": "regression_csr_avx512",
    "attention_gpu_h100.json": "attention_gpu_h100",
}


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="one file of results, with --page (default: all that are recorded)")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page differs")
    options = parser.parse_args(command_line)
    if (options.results is None) != (options.page is None):
        parser.error("--results and --page go together")
    pairs = [(HERE / "results" / name, HERE.parent / page) for name, page in PAGES.items()]
    differ = False
    for results, page in [(options.results, options.page)] if options.results else pairs:
        result, text = json.loads(results.read_text()), page.read_text()
        marker = result["benchmark"] if options.results else MARKERS.get(results.name, result["benchmark"])
        wanted = replaced(text, marker, RENDERERS[result["benchmark"]](result))
        if options.check and text != wanted:
            differ = True
            print(f"{page} does not show {results}: run python benchmarks/report.py", file=sys.stderr)
        if not options.check:
            page.write_text(wanted)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
