# SPDX-License-Identifier: BSD-3-Clause
"""Regressions on a sparse A on CPU: passes over it beside the same algorithm on scipy's and on torch's sparse matrices, and whether
the time goes with the nonzeros.

OPENBLAS_NUM_THREADS=1 python benchmarks/regression_csr.py    # the figures of docs/regression.md: about ten minutes
python benchmarks/regression_csr.py --quick
python benchmarks/report.py                                   # the tables there from the results
"""

import argparse
import itertools
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from timing import HERE, Contestant, Run, header, interleave, summary, write_json
from torch import Tensor

import torch_rescaled  # noqa: F401  registers the operators

OPS = torch.ops.torch_rescaled
RESULTS = HERE / "results" / "regression_csr_cpu.json"
OURS, SCIPY, TORCH, TRANSPOSED = "torch_rescaled", "scipy", "torch", "torch, A.t()"
LOSS, PLAIN, PRODUCT, MATVEC = "loss and gradient", "plain form", "Hessian product", "A v"
TYPES = [(torch.float32, torch.int32), (torch.float64, torch.int32), (torch.float64, torch.int64)]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-11}
Matvec = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    per_row: int
    columns: int
    nonzeros: int
    dtype: torch.dtype = torch.float32
    index: torch.dtype = torch.int32

    def matrix(self) -> tuple[Tensor, Tensor, Tensor]:
        """crow_indices, col_indices and values. A row's columns ascend and differ: one of each of `per_row` equal ranges."""
        n, width, index = self.nonzeros // self.per_row, self.columns // self.per_row, self.index
        columns = torch.randint(width, (n, self.per_row), dtype=index)
        columns += width * torch.arange(self.per_row, dtype=index)
        rows = self.per_row * torch.arange(n + 1, dtype=index)
        return rows, columns.flatten(), torch.randn(n * self.per_row, dtype=self.dtype)

    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """x and another for the target, by which logits have a standard deviation of 0.3; and a direction."""
        x, other, v = torch.randn(3, self.columns, dtype=self.dtype)
        scale = 0.3 / self.per_row**0.5
        return scale * x, scale * other, v


class Formulas:
    """As one writes them, on numpy's or torch's arrays, by products with A and with its transpose."""

    def __init__(self, matvec: Matvec, transposed: Matvec, exp: Matvec) -> None:
        self.matvec, self.transposed, self.exp = matvec, transposed, exp

    def softmax(self, z: Any) -> Any:
        u = self.exp(z - z.max())
        return u / u.sum()

    def loss(self, b: Any, x: Any) -> tuple[Any, Any]:
        f = self.softmax(self.matvec(x))
        c = f - b
        return c @ c / 2, self.transposed(f * (c - f @ c))

    def plain(self, b: Any, x: Any) -> tuple[Any, Any]:
        u = self.exp(self.matvec(x))
        c = u - b
        return c @ c / 2, self.transposed(u * c)

    def product(self, b: Any, x: Any, v: Any) -> tuple[Any]:
        """Of the normalized form, the full Hessian."""
        f, t = self.softmax(self.matvec(x)), self.matvec(v)
        c, df = f - b, f * (t - f @ t)
        return (self.transposed(df * (c - f @ c) + f * (df - df @ c - f @ df)),)


def timed(f: Callable[..., tuple[Any, ...]], *arguments: Any) -> Callable[[], Run]:
    """numpy's results as tensors, which costs nothing."""
    return lambda: lambda: tuple(torch.as_tensor(part) for part in f(*arguments))


def ours(components: tuple[Any, ...], b: Tensor, x: Tensor, form: str) -> tuple[Tensor, Tensor]:
    log_loss, gradient, _, log_scale = OPS.regression_evaluate_csr(*components, b, x, form=form)
    return log_loss.exp(), log_scale.exp() * gradient


def contestants(case: Case, with_peers: bool = True) -> dict[str, list[Contestant]]:
    """By the piece that they compute; ours is the first of each."""
    torch.manual_seed(0)
    rows, columns, values = components = case.matrix()
    x, other, v = case.vectors()
    t = OPS._regression_matvec(values, other, rows, columns)
    b, plain_b, design = torch.softmax(t, 0), t.exp(), (*components, case.columns)
    pieces = {
        LOSS: [Contestant(OURS, timed(ours, design, b, x, "normalized"))],
        PLAIN: [Contestant(OURS, timed(ours, design, plain_b, x, "plain"))],
        PRODUCT: [Contestant(OURS, timed(lambda: (OPS.regression_hvp_csr(*design, b, x, v, form="normalized"),)))],
        MATVEC: [Contestant(OURS, timed(lambda: (OPS._regression_matvec(values, v, rows, columns),)))],
    }
    if not with_peers:
        return pieces
    S = csr_array((values.numpy(), columns.numpy(), rows.numpy()), shape=(len(t), case.columns))
    turned, view = S.T.tocsr(), S.T
    for matrix in (S, view):  # scipy would make int32 of them
        matrix.indptr, matrix.indices = rows.numpy(), columns.numpy()
    A = torch.sparse_csr_tensor(*components, S.shape, check_invariants=False)
    starts, places = (torch.from_numpy(part).to(case.index) for part in (turned.indptr, turned.indices))
    At = torch.sparse_csr_tensor(starts, places, torch.from_numpy(turned.data), turned.shape, check_invariants=False)
    by_scipy = Formulas(lambda x: S @ x, lambda g: view @ g, np.exp)
    by_torch = Formulas(lambda x: A @ x, lambda g: At @ g, torch.exp)
    by_view = Formulas(lambda x: A @ x, lambda g: A.t() @ g, torch.exp)
    for name, by, given in (
        (SCIPY, by_scipy, [part.numpy() for part in (b, plain_b, x, v)]),
        (TORCH, by_torch, [b, plain_b, x, v]),
    ):
        target, plain_target, point, direction = given
        pieces[LOSS].append(Contestant(name, timed(by.loss, target, point)))
        pieces[PLAIN].append(Contestant(name, timed(by.plain, plain_target, point)))
        pieces[PRODUCT].append(Contestant(name, timed(by.product, target, point, direction)))
        pieces[MATVEC].append(Contestant(name, timed(lambda by=by, v=direction: (by.matvec(v),))))  # type: ignore[misc]
    if case.dtype == torch.float32:
        pieces[LOSS].append(Contestant(TRANSPOSED, timed(by_view.loss, b, x)))
    return pieces


def require_agreement(case: Case, piece: str, listed: list[Contestant]) -> None:
    """Nobody is fast at computing something else."""
    first, *others = ([part.double() for part in c.run()[1]] for c in listed)
    for contestant, found in zip(listed[1:], others, strict=True):
        error = max(((a - b).norm() / b.norm()).item() for a, b in zip(first, found, strict=True))
        if not error < TOLERANCE[case.dtype]:
            raise RuntimeError(f"{case}: {piece}: {contestant.name} differs by {error:.1e}")


def measure(case: Case, threads: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    figures = {}
    for piece, listed in contestants(case).items():
        require_agreement(case, piece, listed)
        samples = interleave([c for c in listed if c.name != TRANSPOSED], repeats, 0.0)
        # A.t() is converted at every product, which takes seconds: one sample says enough.
        samples |= {c.name: [c.run()[0]] for c in listed if c.name == TRANSPOSED}
        figures[piece] = {name: summary(times) for name, times in samples.items()}
    told = [
        f"{piece} {1e9 * by[OURS]['seconds'] / case.nonzeros:.2f} ns a nonzero"
        + "".join(f", {name} {f['seconds'] / by[OURS]['seconds']:.2f}x" for name, f in by.items() if name != OURS)
        for piece, by in figures.items()
    ]
    dtype, index = (str(kind)[6:] for kind in (case.dtype, case.index))
    print(f"{case.per_row} a row, d {case.columns}, {dtype}, {index}, {threads} threads: {'; '.join(told)}", flush=True)
    return {**asdict(case), "dtype": dtype, "index": index, "threads": threads, "pieces": figures}


def scaling(sizes: list[int], threads: int, repeats: int) -> dict[str, Any]:
    """Nanoseconds a nonzero of loss and gradient, 10 in a row, at 10000 columns."""
    torch.set_num_threads(threads)
    by_size = {}
    for nonzeros in sizes:
        figure = summary(interleave(contestants(Case(10, 10_000, nonzeros), with_peers=False)[LOSS], repeats)[OURS])
        by_size[str(nonzeros)] = figure | {"ns": 1e9 * figure["seconds"] / nonzeros}
    ns = [figure["ns"] for figure in by_size.values()]
    flatness = max(ns) / min(ns)
    told = ", ".join(f"{float(n):.0e}: {figure['ns']:.2f} ns" for n, figure in by_size.items())
    print(f"{threads} threads: {told}, flat to {flatness:.2f}", flush=True)
    return {"threads": threads, "sizes": by_size, "flatness": flatness}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--nonzeros", type=int, help="of A; 1e7 by default, with --quick 1e5")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one small case, and at most 1e6 nonzeros")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)  # is in beta, it says
    warnings.filterwarnings("ignore", "Sparse CSC tensor support", UserWarning)
    per_row, columns, types = [10, 100], [1000, 10_000, 100_000], TYPES
    sizes, repeats, nonzeros = [10**k for k in range(5, 9)], options.repeats, options.nonzeros or 10_000_000
    if options.quick:
        per_row, columns, types, sizes, repeats = [10], [1000], TYPES[:1], sizes[:2], 3
        nonzeros = options.nonzeros or 100_000
    result: dict[str, Any] = {"benchmark": "regression_csr", **header(options.threads)}
    begin = os.getloadavg()[0]
    cases = [Case(k, d, nonzeros, *kinds) for kinds, k, d in itertools.product(types, per_row, columns)]
    result["timings"] = [measure(case, threads, repeats) for case, threads in itertools.product(cases, options.threads)]
    result["scaling"] = [scaling(sizes, threads, repeats) for threads in options.threads]
    result["load"] = [round(load, 1) for load in (begin, os.getloadavg()[0])]  # two threads on busy processors wait for each other
    write_json(options.output, result)


if __name__ == "__main__":
    main()
