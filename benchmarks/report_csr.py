# SPDX-License-Identifier: BSD-3-Clause
"""The tables of regressions on a sparse A."""

from typing import Any

from report_tables import OURS, markdown_table, where


def regression_csr_markdown(result: dict[str, Any]) -> str:
    """A row for each matrix and contestant, a column for each piece: ours in nanoseconds a nonzero, the others over ours."""
    timings, first = result["timings"], result["timings"][0]
    threads = sorted({entry["threads"] for entry in timings})
    rows = [["in a row", "d", "", "", *first["pieces"]]]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in sorted(timings, key=lambda entry: entry["threads"]):
        groups.setdefault(tuple(entry[field] for field in ("per_row", "columns", "dtype", "index")), []).append(entry)

    def cell(entries: list[dict[str, Any]], name: str, piece: str) -> str:
        figures = [(entry["pieces"][piece].get(name), entry["pieces"][piece][OURS]) for entry in entries]
        if name == OURS:
            return ", ".join(f"{1e9 * own['seconds'] / first['nonzeros']:.2f}" for _, own in figures)
        return ", ".join(f"{found['seconds'] / own['seconds']:.2f}x" for found, own in figures if found)

    for (per_row, columns, dtype, index), entries in groups.items():
        for name in dict.fromkeys(name for piece in entries[0]["pieces"].values() for name in piece):
            head = [str(per_row), str(columns), f"{dtype}, {index}"] if name == OURS else ["", "", ""]
            rows.append(
                [*head, f"{OURS}, ns" if name == OURS else name, *(cell(entries, name, piece) for piece in first["pieces"])]
            )
    sizes = list(result["scaling"][0]["sizes"])
    flat = [["threads", *(f"{float(size):.0e} nonzeros" for size in sizes), "largest over smallest"]]
    for entry in result["scaling"]:
        ns = (f"{entry['sizes'][size]['ns']:.2f}" for size in sizes)
        flat.append([str(entry["threads"]), *ns, f"{entry['flatness']:.2f}"])
    text = (
        f"{where(result)} {first['nonzeros']:.0e} nonzeros, {' and '.join(map(str, threads))} threads on"
        f" {result['machine']['processors']} processors with a load of {' to '.join(map(str, result['load']))} (threads that share"
        " a processor with other work wait for each other). Of ours nanoseconds a nonzero, of the others their time over ours;"
        " scipy has one thread in either case, torch has the transpose beside A, and `A.t()` is converted at every product:"
    )
    return "\n\n".join(
        [
            text,
            markdown_table(rows),
            "Loss and gradient, 10 nonzeros a row, d 10000, float32 with int32 indices, nanoseconds a nonzero:",
            markdown_table(flat),
        ]
    )
