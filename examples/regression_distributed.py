# SPDX-License-Identifier: BSD-3-Clause
"""A softmax regression whose rows are shared out over processes, and are larger than the memory each may use.

The rows lie in a file. Each process maps it and takes its part of the rows: the kernels read them where they are, the operating
system brings pages in and drops them, and nothing of A is copied. Processes exchange sums of a few numbers and vectors of d, never
rows. On several machines each has a file of its own rows, and nothing else changes.

torchrun --standalone --nproc-per-node 2 examples/regression_distributed.py        # 200 MB in the folder for temporary files
torchrun --standalone --nproc-per-node 2 examples/regression_distributed.py --megabytes 100000 --folder /a/large/disk
"""

import argparse
import os
import resource
import shutil
import tempfile
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from torch_rescaled import Regression, Solution, solve

F64 = torch.float64
BLOCK = 1 << 14  # rows generated at a time


def generate(folder: Path, rows: int, columns: int) -> None:
    """A of normal numbers, and b near the softmax of A x, in two files."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(columns, generator=generator, dtype=F64) / columns**0.5
    total = torch.zeros((), dtype=F64)
    with (folder / "A").open("wb") as matrix, (folder / "b").open("wb") as target:
        for first in range(0, rows, BLOCK):
            A = torch.randn(min(BLOCK, rows - first), columns, generator=generator, dtype=F64)
            u = torch.exp(A @ x) * (1 + 0.1 * torch.randn(len(A), generator=generator, dtype=F64))
            total += u.sum()
            matrix.write(A.numpy().tobytes())
            target.write(u.numpy().tobytes())
    mapped(folder / "b", rows).div_(total)


def mapped(path: Path, *shape: int) -> Tensor:
    """The file's numbers, of which nothing is read before it is used."""
    size = int(torch.Size(shape).numel())
    return torch.from_file(str(path), shared=True, size=size, dtype=F64).view(shape)


def own_memory() -> int:
    """Bytes of this process that are no file's, as the limit below counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return 1024 * int(line.split()[1])


def allow(megabytes: float) -> None:
    """From here on at most so much more memory: to ask for more is an error."""
    resource.setrlimit(resource.RLIMIT_DATA, (own_memory() + int(1e6 * megabytes), resource.RLIM_INFINITY))


def report(name: str, solution: Solution, bytes_of_A: int) -> None:
    reads, grams, seconds, of_reads = (solution.number(n).item() for n in ("reads", "grams", "seconds", "seconds_reads"))
    read = of_reads / (reads - grams)  # alone, without a Gram
    print(f"{name}: {solution.status.name}, {solution.method}, {reads:.0f} reads of A in {seconds:.2f} s")
    print(f"  a read takes {1e3 * read:.1f} ms, {1e-9 * bytes_of_A / read:.1f} GB/s")


def run(folder: Path, rows: int, columns: int, allowed: float) -> None:
    group, rank, size = torch.distributed.group.WORLD, torch.distributed.get_rank(), torch.distributed.get_world_size()
    if rank == 0:
        folder.mkdir()
        generate(folder, rows, columns)
    torch.distributed.barrier()
    A, b = mapped(folder / "A", rows, columns), mapped(folder / "b", rows)
    part = slice(rank * rows // size, (rank + 1) * rows // size)
    allow(allowed)
    together = solve(Regression(A[part], b[part], form="normalized"), group=group).raise_for_status()
    everywhere = [torch.zeros_like(together.x) for _ in range(size)]
    torch.distributed.all_gather(everywhere, together.x)
    if rank == 0:
        sizes = f"{1e-6 * A.nbytes:.0f} MB in parts of {1e-6 * A[part].nbytes:.0f} MB, beside each {allowed:.0f} MB of memory"
        print(f"A: {rows} x {columns}, {sizes}")
        report(f"{size} processes", together, A.nbytes)
        print(f"the same x in all of them, bit for bit: {all(torch.equal(x, together.x) for x in everywhere)}")
        allow(1e9)
        alone = solve(Regression(A, b, form="normalized")).raise_for_status()
        report("1 process", alone, A.nbytes)
        print(f"x differs by {float((alone.x - together.x).norm() / alone.x.norm()):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200, help="size of A, all rows together")
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--allowed", type=float, help="megabytes of memory for each; half of its part of A by default")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()

    torch.distributed.init_process_group("gloo")
    rows = int(1e6 * options.megabytes) // (8 * options.columns)
    folder = options.folder / f"regression_distributed_{os.environ['TORCHELASTIC_RUN_ID']}"
    # Vectors of n numbers, of which a solve has a dozen, are what the memory is for.
    half = options.megabytes / torch.distributed.get_world_size() / 2
    try:
        run(folder, rows, options.columns, half if options.allowed is None else options.allowed)
    finally:
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
