# SPDX-License-Identifier: BSD-3-Clause
"""What was seen to run on GPUs: the record tests/gpu_verified.json, and the page docs/GPU_STATUS.md that shows it.

Kernels are verified by family. The library reads the record when it is built: where no run names a family's sources and the GPU's
compute capability with every primitive passed, CUDA tensors take the plain-tensor path there.
"""

import json
import os
import re
import subprocess
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from report_tables import markdown_table, replaced

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "gpu_verified.json"
PAGE = ROOT / "docs" / "GPU_STATUS.md"
PRIMITIVES = {
    "attention": ("forward", "backward", "jvp", "double_backward"),
    "regression": ("evaluate", "product", "matvec", "statistics", "rows", "model", "curvature", "gauss_newton"),
    "regression_csr": ("evaluate", "product", "matvec", "transposed", "curvature"),
    "matrix_regression": (
        "statistics", "gradient", "moments", "product", "tangents", "gradient_tangent", "columns", "elements",
    ),
}  # fmt: skip
# What a test of attention's oracle says first, and the primitives it speaks of.
SPEAKS_OF = {
    "forward": ["forward"],
    "backward": ["backward"],
    "jvp": ["jvp"],
    "double backward": ["double_backward"],
    "forward over reverse": ["backward", "double_backward"],
}
Run = dict[str, Any]


def sources_hashes() -> dict[str, str]:
    """The hash of the sources of each family's CUDA kernels; CMake holds the lists."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    command = ["cmake", "-P", str(ROOT / "cmake" / "cuda_sources.cmake")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path})
    return dict(line.split() for line in done.stdout.splitlines())


def load(path: Path = RECORD) -> list[Run]:
    runs: list[Run] = json.loads(path.read_text())["runs"]
    return runs


def family_of(run: Run) -> str:
    family: str = run.get("family", "attention")
    return family


def with_run(runs: list[Run], new: Run) -> list[Run]:
    """The new run in the place of an older one of the same sources and GPU; runs of other sources stay."""

    def key(run: Run) -> tuple[str, ...]:
        return family_of(run), run["sources"], run["capability"], run["gpu"]

    return [run for run in runs if key(run) != key(new)] + [new]


def text_of(runs: list[Run]) -> str:
    return json.dumps({"runs": runs}, indent=1) + "\n"


def outcome(reports: list[str], family: str = "attention") -> tuple[dict[str, int], dict[str, bool]]:
    """Numbers of tests passed, failed and skipped in JUnit reports of a family's tests, and which primitives passed.

    A failure of attention that names a derivative fails its primitives, any other all of them; without a test that passed, none
    passes.
    """
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    passed = dict.fromkeys(PRIMITIVES[family], True)
    for test in (test for report in reports for test in ElementTree.fromstring(report).iter("testcase")):
        bad = next((child for child in test if child.tag in ("failure", "error")), None)
        skipped = test.find("skipped") is not None
        counts["failed" if bad is not None else "skipped" if skipped else "passed"] += 1
        if bad is not None:
            said = re.match(r"(?:AssertionError: )?([a-z ]+)\[\d+\]: ", bad.get("message") or "")
            named = SPEAKS_OF.get(said[1]) if said and family == "attention" else None
            passed.update(dict.fromkeys(named or PRIMITIVES[family], False))
    return counts, passed if counts["passed"] else dict.fromkeys(PRIMITIVES[family], False)


def status(runs: list[Run], sources: dict[str, str]) -> str:
    """The generated part of the page; `sources` by family."""
    current = [run for run in runs if run["sources"] == sources[family_of(run)]]
    lines = []
    for family, hash_ in sources.items():
        name, of_family = family.replace("_", " "), [run for run in current if family_of(run) == family]
        if not of_family:
            lines.append(
                f"**No GPU has run CUDA kernels of {name} of this version** (sources `{hash_}`): on every GPU, CUDA tensors take "
                "the plain-tensor path there."
            )
            continue
        rows = [["GPU", "compute capability", "torch", "commit", "date", *(p.replace("_", " ") for p in PRIMITIVES[family])]]
        for run in of_family:
            marks = ["passed" if run["primitives"][p] else "failed" for p in PRIMITIVES[family]]
            rows.append([run["gpu"], run["capability"], run["torch"], run["commit"], run["date"], *marks])
        lines.append(f"The CUDA kernels of {name} of this version (sources `{hash_}`) ran on:\n\n{markdown_table(rows)}")
    if current:
        lines.append(
            "Where every primitive of a family passed, GPUs of that compute capability take its kernels; all others take the "
            "plain-tensor path."
        )
    if older := len(runs) - len(current):
        lines.append(f"Runs of other versions of the sources in the record: {older}. They verify nothing here.")
    return "\n\n".join(lines)


def page_with_status(page: str, runs: list[Run], sources: dict[str, str]) -> str:
    return replaced(page, "gpu", status(runs, sources))
