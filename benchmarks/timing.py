# SPDX-License-Identifier: BSD-3-Clause
"""Timing that contestants share: interleaved, warmed up, medians; and what machine it was."""

import ctypes
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
Run = Callable[[], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Contestant:
    """`prepare` does what must not be timed (a fresh forward), returns the call that is; both run inside `context`."""

    name: str
    prepare: Callable[[], Run]
    context: Callable[[], AbstractContextManager[object]] = nullcontext

    def run(self) -> tuple[float, tuple[torch.Tensor, ...]]:
        """Seconds of the timed piece, and what it returned."""
        with self.context():
            piece = self.prepare()
            start = time.perf_counter()
            result = piece()
            return time.perf_counter() - start, result


def interleave(contestants: list[Contestant], repeats: int = 5, seconds: float = 0.3) -> dict[str, list[float]]:
    """Rounds of all contestants in turn, until each has `repeats` samples and `seconds` of measured time.

    A drifting clock or a busy neighbor then hits all of them alike. The order turns by one each round, so that nobody
    always inherits the same caches.
    """
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for contestant in contestants:
        contestant.run()
    while any(len(s) < repeats or (sum(s) < seconds and len(s) < 40 * repeats) for s in samples.values()):
        for contestant in contestants:
            samples[contestant.name].append(contestant.run()[0])
        contestants = contestants[1:] + contestants[:1]
    return samples


def summary(samples: list[float]) -> dict[str, float]:
    """Median and quartiles in seconds."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return {"seconds": middle, "lower_quartile": low, "upper_quartile": high, "repeats": len(samples)}


def fma_peak(threads: list[int]) -> dict[str, float]:
    """Measured float32 multiply-add peak in GF/s by number of threads; empty without a compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "peak")
        options = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
        subprocess.run([compiler, *options, HERE / "peak.cpp", "-o", program], check=True)
        return {
            str(n): float(subprocess.run([program, str(n)], check=True, capture_output=True, text=True).stdout) for n in threads
        }


def reader(folder: str) -> Callable[[torch.Tensor, int], float]:
    """read.cpp, compiled: reads a tensor's memory with some threads."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    library = Path(folder, "read.so")
    options = ["-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *options, HERE / "read.cpp", "-o", library], check=True)
    function = ctypes.CDLL(str(library)).read_bytes
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return lambda t, threads: function(t.data_ptr(), t.numel() * t.element_size(), threads)


def read_bandwidth(threads: list[int], size: int = 160_000_000) -> dict[str, float]:
    """Measured GB/s of reading memory, by number of threads: data of at least four times a last-level cache of 32 MiB."""
    data = torch.ones(size, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        read = reader(folder)
        result = {}
        for n in threads:
            times = []
            for _ in range(9):
                start = time.perf_counter()
                read(data, n)
                times.append(time.perf_counter() - start)
            result[str(n)] = size / statistics.median(times) / 1e9
    return result


def build_facts() -> dict[str, str]:
    """The lines of `torch_rescaled::build_info` (torch, compiler, cpu_isa, ...) by name."""
    lines = torch.ops.torch_rescaled.build_info().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def machine() -> dict[str, Any]:
    """CPU model, number of processors and memory."""
    model = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    for fact in facts.read_text().splitlines() if facts.exists() else []:
        name, _, value = fact.partition(":")
        if name.strip() == "model name":
            model = value.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "processors": os.cpu_count(), "memory_gib": round(memory / 2**30, 1)}


def commit() -> str:
    """The commit that was measured, marked when the sources differ from it; "unknown" outside a repository."""
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(HERE.parent)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "csrc", "torch_rescaled", "CMakeLists.txt"])
    return head.stdout.strip() + ("" if changed.returncode == 0 else "-changed")


def header(threads: list[int]) -> dict[str, Any]:
    """What every result file says about where it comes from."""
    return {
        "machine": machine(),
        "isa": build_facts()["cpu_isa"],
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "peak_gflops": fma_peak(threads),
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Stable order and a final newline, so that two runs can be compared line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
