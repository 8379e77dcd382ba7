# SPDX-License-Identifier: BSD-3-Clause
"""Peak memory of a piece: resident memory above that of its inputs, each in a process of its own.

attention.py runs it as a program that reads cases and prints figures. It counts what the operating system saw,
workspaces inside kernels included, which torch's own counters miss on other threads;
the kernel's page counters make that right to about 0.3 MiB.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from contestants import Case, with_math

# Larger blocks are mapped when allocated and returned when freed, so that the peak is that of live memory.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure_all(cases: Iterable[Case], threads: int) -> list[dict[str, Any]]:
    """Entries {case..., contestant, peak_bytes}; none where the system does not tell peak memory (not Linux)."""
    if not Path("/proc/self/clear_refs").exists():
        return []
    request = json.dumps({"threads": threads, "cases": [asdict(case) for case in cases]})
    command = [sys.executable, __file__]
    done = subprocess.run(command, input=request, env={**os.environ, **ALLOCATOR}, text=True, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"the memory measurement failed:\n{done.stderr}")
    return json.loads(done.stdout)


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def peak_bytes(case: Case, contestant: str) -> int:
    """From the inputs to the results: the forward and everything that it saves are part of it."""
    small = Case(case.piece, case.kind, case.dtype, case.is_causal, 1, 64, case.head_size)
    for warm_up in with_math(small):  # code and thread stacks are not what is measured
        if warm_up.name == contestant:
            warm_up.run()
    chosen = next(c for c in with_math(case) if c.name == contestant)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    before = resident("VmRSS")
    chosen.run()
    return max(0, resident("VmHWM") - before)


def child(case: Case, contestant: str, threads: int, answer: Connection) -> None:
    torch.set_num_threads(threads)
    answer.send(peak_bytes(case, contestant))


def in_own_process(case: Case, contestant: str, threads: int) -> int:
    """A fork, made before this process has computed anything: torch is imported once, each measurement starts clean."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(case, contestant, threads, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{contestant}, {case}: ended with status {process.exitcode}") from None
    finally:
        process.join()


def main() -> None:
    request = json.load(sys.stdin)
    result = []
    for fields in request["cases"]:
        case = Case(**fields)
        for name in [c.name for c in with_math(Case(case.piece, dtype=case.dtype, length=2))]:
            result.append({**fields, "contestant": name, "peak_bytes": in_own_process(case, name, request["threads"])})
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
