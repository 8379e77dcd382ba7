# SPDX-License-Identifier: BSD-3-Clause
"""The tables of what GPUs gave."""

from typing import Any

from report_tables import NAMES, OURS, markdown_table


def gpu_markdown(result: dict[str, Any]) -> str:
    """Rates, and times of the peers over ours; a row for each piece, kind and mask, a column for each size."""
    sizes = list(dict.fromkeys((entry["head_size"], entry["length"]) for entry in result["timings"]))
    peers = list(dict.fromkeys(peer for entry in result["timings"] for peer in entry["ratios"]))
    cells: dict[tuple[Any, ...], dict[tuple[int, int], str]] = {}
    for entry in result["timings"]:
        rate = f"{entry['contestants'][OURS]['tflops']:.0f}"
        ratios = [f"{entry['ratios'][peer]:.2f}" if peer in entry["ratios"] else "-" for peer in peers]
        row = cells.setdefault((entry["piece"], entry["kind"], entry["is_causal"]), {})
        row[entry["head_size"], entry["length"]] = f"{rate} ({', '.join(ratios)})" if entry["ratios"] else rate
    rows = [["", *(f"D {head_size}, N {length}" for head_size, length in sizes)]]
    for (piece, kind, is_causal), row in cells.items():
        name = ", ".join(filter(None, [NAMES[piece], kind, "causal" if is_causal else ""]))
        rows.append([name, *(row.get(size, "") for size in sizes)])
    text = f"{result['gpu']}, torch {result['torch']}, commit {result['commit']}, {result['date']}; a matrix product "
    text += (
        f"of 8192 reaches {result['matmul_tflops']:.0f} TFLOP/s there. bfloat16, B·H N = 65536: TFLOP/s on the standard count of "
    )
    text += f"operations, and in brackets the time of {', '.join(peers)} over ours:"
    return f"{text}\n\n{markdown_table(rows)}"


def on_gpu(result: dict[str, Any]) -> str:
    return f"{result['gpu']}, torch {result['torch']}, commit {result['commit']}, {result['date']}"


def regression_gpu_markdown(result: dict[str, Any]) -> str:
    """Milliseconds of the passes and their share of a copy's bandwidth; whole solves."""
    passes = list(dict.fromkeys(name for entry in result["timings"] for name in entry["passes"]))
    rows = [["", *(f"n {entry['n']:.0e}, d {entry['d']}, {entry['dtype']}" for entry in result["timings"])]]
    for name in passes:
        cells = [entry["passes"].get(name) for entry in result["timings"]]
        rows.append([name, *(f"{c['milliseconds']:.2f} ({c['share_of_copy']:.2f})" if c else "" for c in cells)])
    solves = [["condition of A", "solver", "seconds", "iterations", "of two reads and a Gram, each", "loss above the best"]]
    for found in result["solves"]:
        condition = f"{found['condition']:.0e}"
        for name in ("newton", "newton from 0"):
            of = found[name]
            solves.append([condition, name, f"{of['seconds']:.3f}", str(of["iterations"]), f"{of['iteration_over_floor']:.1f}", ""])
        peer = found["lbfgs"]
        ended = f"{peer['gap']:.0e}" if peer["gap"] > 1e-7 else "reached"
        solves.append([condition, "torch.optim.LBFGS on the eager formula", f"{peer['seconds']:.3f}", "", "", ended])
    first = result["solves"][0]
    return "\n\n".join(
        [
            f"{on_gpu(result)}; a copy moves {result['copy_gb_s']:.0f} GB/s there. Milliseconds, and in brackets the bytes that "
            "must move over that rate:",
            markdown_table(rows),
            f"Solves of the normalized form at n {first['n']:.0e}, d {first['d']}, {first['dtype']}, wall-clock; L-BFGS stops "
            "within 1e-6 of the solver's loss, or when its time is over:",
            markdown_table(solves),
        ]
    )


def regression_csr_gpu_markdown(result: dict[str, Any]) -> str:
    """Microseconds of the passes over a sparse A, and the times of torch's products over ours."""
    rows = [["", *(f"n {e['n']:.0e}, d {e['d']}, {e['each']} a row, {e['columns']}" for e in result["timings"])]]
    names = list(dict.fromkeys(name for entry in result["timings"] for name in entry["seconds"]))
    for name in names:
        peer, _, of = name.rpartition(": ")
        cells = []
        for seconds in (entry["seconds"] for entry in result["timings"]):
            if name not in seconds:
                cells.append("")
            else:
                cells.append(f"{seconds[name] / seconds[of]:.2f}x" if peer else f"{1e6 * seconds[name]:.0f}")
        rows.append([name, *cells])
    text = (
        f"{on_gpu(result)}. float32 values, int32 indices; microseconds of ours, and the time of torch's sparse products over it, "
    )
    text += "with A's transpose built beforehand (which takes as long as the product without it) and without:"
    return f"{text}\n\n{markdown_table(rows)}"


def matrix_regression_gpu_markdown(result: dict[str, Any]) -> str:
    """Times over ours, and peak memory beside the arguments."""
    names = list(dict.fromkeys(name for entry in result["timings"] for name in entry["ratios"]))
    rows = [["kind", "form", "matrices", "n", "d", "ours, ms", "TFLOP/s", *(f"{name} / ours" for name in names)]]
    memory = [["peak MiB beside the arguments", *(f"{e['heads']} x n {e['length']}, d {e['columns']}" for e in result["timings"])]]
    for entry in result["timings"]:
        ours = entry["contestants"][OURS]
        head = [entry["kind"], entry["form"], str(entry["heads"]), str(entry["length"]), str(entry["columns"])]
        ratios = [f"{entry['ratios'][name]:.2f}" for name in names]
        rows.append([*head, f"{1e3 * ours['seconds']:.2f}", f"{ours['tflops']:.0f}", *ratios])
    for name in (OURS, *names):
        memory.append([name, *(f"{e['contestants'][name]['peak_bytes'] / 2**20:.0f}" for e in result["timings"])])
    text = f"{on_gpu(result)}. Loss and gradient in X, float32; what is not eager or compiled is ours:"
    return "\n\n".join([text, markdown_table(rows), markdown_table(memory)])
