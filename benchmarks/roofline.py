# SPDX-License-Identifier: BSD-3-Clause
"""Rates of every measured shape under the two limits of the machine: reading memory, and multiply-adds."""

from pathlib import Path
from typing import Any

PEERS = ("sdpa flash", "sdpa math")
TITLES = {"forward": "forward", "backward": "backward", "jvp": "output and JVP", "double_backward": "double backward"}
# Tensors of queries' and of keys' shape that a call reads or writes at least once.
TENSORS = {"forward": (2, 2), "backward": (4, 4), "jvp": (4, 4), "double_backward": (6, 6)}


def intensity(entry: dict[str, Any]) -> float:
    """Floating-point operations of the standard count for each byte that must move, float32."""
    rows = entry["queries"] or entry["length"]
    of_queries, of_keys = TENSORS[entry["piece"]]
    moved = 4 * entry["heads"] * entry["head_size"] * (of_queries * rows + of_keys * entry["length"])
    flop = next(iter(entry["contestants"].values()))
    return float(flop["gflops"] * 1e9 * flop["seconds"] / moved)


def draw_roofline(result: dict[str, Any], path: Path) -> None:
    """A panel for each piece and number of threads: ours and PyTorch's points, and the roof."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pieces = list(dict.fromkeys(entry["piece"] for entry in result["timings"]))
    threads = sorted({entry["threads"] for entry in result["timings"]})
    figure, axes = pyplot.subplots(
        len(threads), len(pieces), figsize=(3.2 * len(pieces), 2.8 * len(threads)), sharex=True, squeeze=False
    )
    for row, (axis_row, count) in enumerate(zip(axes, threads, strict=True)):
        peak, read = result["peak_gflops"][str(count)], result["read_gb_s"][str(count)]
        for axis, piece in zip(axis_row, pieces, strict=True):
            entries = [e for e in result["timings"] if (e["piece"], e["threads"]) == (piece, count)]
            for names, color, label in ((PEERS, "tab:orange", "PyTorch"), (("torch_rescaled",), "tab:blue", "torch_rescaled")):
                points = [(intensity(e), f["gflops"]) for e in entries for name, f in e["contestants"].items() if name in names]
                axis.plot(*zip(*points, strict=True), ".", color=color, label=label, markersize=4, alpha=0.7)
            ends = [4.0, peak / read, 4096.0]
            axis.plot(ends, [min(peak, read * x) for x in ends], color="black", linewidth=1, label="read and FMA limits")
            axis.set(xscale="log", yscale="log", xlim=(4, 4096), ylim=(peak / 30, peak * 1.3))
            if row == 0:
                axis.set_title(TITLES[piece])
            if row == len(threads) - 1:
                axis.set_xlabel("flop for each byte of tensors")
        axis_row[0].set_ylabel(f"GF/s, {count} thread{'s' if count > 1 else ''}")
    axes[0][0].legend(fontsize="x-small", loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
