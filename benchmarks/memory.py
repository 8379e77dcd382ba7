# SPDX-License-Identifier: BSD-3-Clause
"""Peak memory of a piece: resident memory above that of its inputs, each in a process of its own.

The benchmarks run it as a program that reads cases and prints figures. It counts what the operating system saw, workspaces
inside kernels included, which torch's own counters miss on other threads; the kernel's page counters make that right to about
0.3 MiB. A benchmark's module has `Case` and `memory_contestants(case)`.
"""

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from timing import Contestant

# Larger blocks are mapped when allocated and returned when freed, so that the peak is that of live memory.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure_all(cases: Iterable[Any], threads: int, module: str) -> list[dict[str, Any]]:
    """Entries {case..., contestant, peak_bytes}; none where the system does not tell peak memory (not Linux)."""
    if not Path("/proc/self/clear_refs").exists():
        return []
    request = json.dumps({"module": module, "threads": threads, "cases": [asdict(case) for case in cases]})
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


def peak_bytes(warm_up: Contestant, chosen: Contestant) -> int:
    """From the inputs to the results: the forward and everything that it saves are part of it."""
    warm_up.run()  # code and thread stacks are not what is measured
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    before = resident("VmRSS")
    chosen.run()
    return max(0, resident("VmHWM") - before)


def child(warm_up: Contestant, chosen: Contestant, threads: int, answer: Connection) -> None:
    torch.set_num_threads(threads)
    answer.send(peak_bytes(warm_up, chosen))


def in_own_process(warm_up: Contestant, chosen: Contestant, threads: int) -> int:
    """A fork, made before this process has computed anything: torch is imported once, each measurement starts clean."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(warm_up, chosen, threads, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{chosen.name}: ended with status {process.exitcode}") from None
    finally:
        process.join()


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    module = importlib.import_module(request["module"])
    result = []
    for fields in request["cases"]:
        case = module.Case(**fields)
        small = module.memory_contestants(replace(case, heads=1, length=64))
        for warm_up, chosen in zip(small, module.memory_contestants(case), strict=True):
            peak = in_own_process(warm_up, chosen, request["threads"])
            result.append({**fields, "contestant": chosen.name, "peak_bytes": peak})
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
