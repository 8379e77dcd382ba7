# SPDX-License-Identifier: BSD-3-Clause
"""What was seen to run on GPUs: the record tests/gpu_verified.json, and the page docs/GPU_STATUS.md that shows it.

The library reads the record when it is built: where no run names the kernels' sources and the GPU's compute capability with every
primitive passed, CUDA tensors take the plain-tensor path.
"""

import json
import os
import re
import subprocess
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from report import markdown_table, replaced

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "gpu_verified.json"
PAGE = ROOT / "docs" / "GPU_STATUS.md"
PRIMITIVES = ("forward", "backward", "jvp", "double_backward")
# What a test of the oracle says first, and the primitives it speaks of.
SPEAKS_OF = {
    "forward": ["forward"],
    "backward": ["backward"],
    "jvp": ["jvp"],
    "double backward": ["double_backward"],
    "forward over reverse": ["backward", "double_backward"],
}
Run = dict[str, Any]


def sources_hash() -> str:
    """The hash of the CUDA kernels' sources; CMake holds the list."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    command = ["cmake", "-P", str(ROOT / "cmake" / "cuda_sources.cmake")]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}).stdout.strip()


def load(path: Path = RECORD) -> list[Run]:
    runs: list[Run] = json.loads(path.read_text())["runs"]
    return runs


def with_run(runs: list[Run], new: Run) -> list[Run]:
    """The new run in the place of an older one of the same sources and capability; runs of other sources stay."""
    key = new["sources"], new["capability"]
    return [run for run in runs if (run["sources"], run["capability"]) != key] + [new]


def text_of(runs: list[Run]) -> str:
    return json.dumps({"runs": runs}, indent=1) + "\n"


def outcome(reports: list[str]) -> tuple[dict[str, int], dict[str, bool]]:
    """Numbers of tests passed, failed and skipped in JUnit reports, and which primitives passed.

    A failure that names a derivative fails its primitives, any other all of them; without a test that passed, none passes.
    """
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    passed = dict.fromkeys(PRIMITIVES, True)
    for test in (test for report in reports for test in ElementTree.fromstring(report).iter("testcase")):
        bad = next((child for child in test if child.tag in ("failure", "error")), None)
        skipped = test.find("skipped") is not None
        counts["failed" if bad is not None else "skipped" if skipped else "passed"] += 1
        if bad is not None:
            named = re.match(r"(?:AssertionError: )?([a-z ]+)\[\d+\]: ", bad.get("message") or "")
            for primitive in SPEAKS_OF.get(named[1] if named else "", list(PRIMITIVES)):
                passed[primitive] = False
    return counts, passed if counts["passed"] else dict.fromkeys(PRIMITIVES, False)


def status(runs: list[Run], sources: str) -> str:
    """The generated part of the page."""
    current = [run for run in runs if run["sources"] == sources]
    older = len(runs) - len(current)
    lines = []
    if not current:
        lines.append(
            "**No GPU has run the CUDA kernels of this version:** they are compiled and linked with nvcc, no more. On every GPU, "
            "CUDA tensors take the plain-tensor path."
        )
    else:
        rows = [["GPU", "compute capability", "torch", "commit", "date", *(p.replace("_", " ") for p in PRIMITIVES)]]
        for run in current:
            marks = ["passed" if run["primitives"][p] else "failed" for p in PRIMITIVES]
            rows.append([run["gpu"], run["capability"], run["torch"], run["commit"], run["date"], *marks])
        lines.append(f"The CUDA kernels of this version (sources `{sources}`) ran on:\n\n{markdown_table(rows)}")
        lines.append(
            "Where every primitive passed, GPUs of that compute capability take the kernels; all others take the plain-tensor path."
        )
    if older:
        lines.append(f"Runs of other versions of the sources in the record: {older}. They verify nothing here.")
    return "\n\n".join(lines)


def page_with_status(page: str, runs: list[Run], sources: str) -> str:
    return replaced(page, "gpu", status(runs, sources))
