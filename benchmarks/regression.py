# SPDX-License-Identifier: BSD-3-Clause
"""Regressions on CPU: one read of A against the bandwidth of a pure read and two products; whole solves against other solvers.

python benchmarks/regression.py        # about eight minutes
python benchmarks/regression.py --quick
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import regression_solvers
import torch
from timing import HERE, Contestant, header, interleave, reader, summary, write_json
from torch import Tensor

from torch_rescaled import regression_hvp

OPS = torch.ops.torch_rescaled
RESULTS = HERE / "results" / "regression_cpu.json"
BYTES = 160_000_000  # at least four times a last-level cache of 32 MiB


def eager(A: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized loss of exp and its gradient by two products: A is read twice."""
    f = torch.softmax(A @ x, 0)
    c = f - b
    return c @ c / 2, A.T @ (f * (c - f @ c))


def pass_case(d: int, dtype: torch.dtype, threads: int, read: Callable[[Tensor, int], float]) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    n = BYTES // (d * dtype.itemsize)
    A, x, v = torch.randn(n, d, dtype=dtype), torch.randn(d, dtype=dtype) * 0.3 / d**0.5, torch.randn(d, dtype=dtype)
    b = torch.softmax(A @ x, 0)
    compiled = torch.compile(eager)

    def timed(f: Callable[[], Any]) -> Callable[[], Callable[[], tuple[Tensor, ...]]]:
        return lambda: lambda: (f(), ())[1]

    rows = [
        Contestant("read", timed(lambda: read(A, threads))),
        Contestant("loss and gradient", timed(lambda: OPS._regression_forward(A, b, x, None, None, "exp", "normalized"))),
        Contestant("plain form", timed(lambda: OPS._regression_forward(A, b, x, None, None, "exp", "plain"))),
        Contestant("hessian product", timed(lambda: regression_hvp(A, b, x, v, form="normalized"))),
        Contestant("A v", timed(lambda: OPS._regression_matvec(A, v))),
        Contestant("eager, two products", timed(lambda: eager(A, b, x))),
        Contestant("torch.compile", timed(lambda: compiled(A, b, x))),
    ]
    times = {name: summary(samples) for name, samples in interleave(rows, repeats=9).items()}
    seconds = times["read"]["seconds"]
    entry = {"d": d, "n": n, "dtype": str(dtype)[6:], "threads": threads, "read_gb_s": BYTES / seconds / 1e9, "times": times}
    ratios = ", ".join(f"{name} {seconds / t['seconds']:.2f}" for name, t in times.items() if name != "read")
    print(
        f"d {d}, {entry['dtype']}, {threads} threads: read {entry['read_gb_s']:.1f} GB/s; as a fraction of it: {ratios}", flush=True
    )
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="one size of each")
    parser.add_argument("--repeats", type=int, default=1, help="of each solve; the fastest counts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = header(options.threads)
    sizes = (64,) if options.quick else (16, 64, 256)
    dtypes = (torch.float32,) if options.quick else (torch.float32, torch.float64)
    with tempfile.TemporaryDirectory() as folder:
        read = reader(folder)
        result["passes"] = [pass_case(d, dtype, n, read) for n, dtype, d in itertools.product(options.threads, dtypes, sizes)]
    result |= regression_solvers.run(options.quick, options.repeats)
    write_json(options.out, result)


if __name__ == "__main__":
    main()
