# SPDX-License-Identifier: BSD-3-Clause
"""Regressions on CPU: one read of A against the bandwidth of a pure read and two products; whole solves against other solvers.

python benchmarks/regression.py        # about eight minutes
python benchmarks/regression.py --quick
"""

import argparse
import ctypes
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from timing import HERE, Contestant, header, interleave, summary, write_json
from torch import Tensor

from torch_rescaled import Regression, regression_hvp, solve

OPS = torch.ops.torch_rescaled
RESULTS = HERE / "results" / "regression_cpu.json"
BYTES = 160_000_000  # at least four times a last-level cache of 32 MiB


def reader(folder: str) -> Callable[[Tensor, int], float]:
    """read.cpp, compiled: reads a tensor's memory with some threads."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    library = Path(folder, "read.so")
    options = ["-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *options, HERE / "read.cpp", "-o", library], check=True)
    function = ctypes.CDLL(str(library)).read_bytes
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return lambda t, threads: function(t.data_ptr(), t.numel() * t.element_size(), threads)


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


def planted(n: int, d: int, condition: float, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows with singular values spread by `condition`, logits of standard deviation 1, multiplicative noise on b."""
    r = np.random.default_rng(seed)
    scale = np.logspace(0, -np.log10(condition), d)
    A = (r.normal(size=(n, d)) * scale) @ np.linalg.qr(r.normal(size=(d, d)))[0].T
    y = np.linalg.lstsq(A[: 20 * d], r.normal(size=20 * d), rcond=None)[0]
    z = A @ y
    z /= z.std()
    b = np.exp(z) / np.exp(z).sum() * (1 + noise * r.normal(size=n))
    return torch.from_numpy(A), torch.from_numpy(b)


def loss_and_gradient(A: np.ndarray, b: np.ndarray, x: np.ndarray) -> tuple[float, np.ndarray]:
    z = A @ x
    f = np.exp(z - z.max())
    f /= f.sum()
    c = f - b
    return 0.5 * c @ c, A.T @ (f * (c - f @ c))


def numpy_newton(A: np.ndarray, b: np.ndarray, x: np.ndarray, record: Callable[[float], None]) -> None:
    """The structured Gauss-Newton step in numpy: A^T diag(p^2) A and a rank-2 part, halving, two to three reads an iteration."""
    for _ in range(100):
        z = A @ x
        f = np.exp(z - z.max())
        f /= f.sum()
        c = f - b
        loss = 0.5 * c @ c
        record(loss)
        g = A.T @ (f * (c - f @ c))
        p, q = A.T @ f, A.T @ (f * f)
        H = A.T @ ((f * f)[:, None] * A) - np.outer(p, q) - np.outer(q, p) + (f @ f) * np.outer(p, p)
        step = -scipy.linalg.cho_solve(scipy.linalg.cho_factor(H + 1e-12 * np.diag(np.diag(H))), g)
        if -g @ step <= 1e-15 * loss:
            return
        t, factor = A @ step, 1.0
        while True:
            trial = np.exp(z + factor * t - (z + factor * t).max())
            trial /= trial.sum()
            if 0.5 * np.sum((trial - b) ** 2) < loss or factor < 1e-6:
                break
            factor /= 2
        x = x + factor * step


def solvers(A: Tensor, b: Tensor, x0: Tensor) -> dict[str, Callable[[Callable[[float], None]], None]]:
    problem = Regression(A, b, form="normalized")
    scale = A.square().mean(0).sqrt()  # what a user of a first-order method would do
    scaled = (A / scale).numpy()
    matrix, target, start = A.numpy(), b.numpy(), x0.numpy()

    def ours(record: Callable[[float], None]) -> None:
        solve(problem, x0, callback=lambda s: record(s.number("log_loss").exp().item()))

    def lbfgs_b(record: Callable[[float], None]) -> None:
        factor = 1 / loss_and_gradient(scaled, target, start * scale.numpy())[0]

        def f(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = loss_and_gradient(scaled, target, x)
            record(value)
            return value * factor, gradient * factor

        options = {"maxiter": 2000, "maxfun": 2000, "ftol": 1e-15, "gtol": 1e-12}
        scipy.optimize.minimize(f, start * scale.numpy(), jac=True, method="L-BFGS-B", options=options)

    def torch_lbfgs(record: Callable[[float], None]) -> None:
        x = (x0 * scale).clone().requires_grad_()
        A_scaled = A / scale
        optimizer = torch.optim.LBFGS([x], max_iter=1000, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe")
        factor = 1 / loss_and_gradient(scaled, target, start * scale.numpy())[0]

        def closure() -> Tensor:
            optimizer.zero_grad()
            value, gradient = eager(A_scaled, b, x.detach())
            record(value.item())
            x.grad = gradient * factor
            return value * factor

        optimizer.step(closure)

    return {
        "torch_rescaled": ours,
        "numpy Newton": lambda record: numpy_newton(matrix, target, start, record),
        "scipy L-BFGS-B": lbfgs_b,
        "torch LBFGS": torch_lbfgs,
    }


def solve_case(n: int, d: int, condition: float, noise: float, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    A, b = planted(n, d, condition, noise)
    # All from the same start, off the solution's scale; ours has a better one of its own.
    x0 = solve(Regression(A, b, form="normalized"), max_iterations=0).x * 0.5
    curves: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for name, run in solvers(A, b, x0).items():
            curve: list[tuple[float, float]] = []
            start = time.perf_counter()
            run(lambda value, curve=curve, start=start: curve.append((time.perf_counter() - start, value)))  # type: ignore[misc]
            if name not in curves or curve[-1][0] < curves[name][-1][0]:
                curves[name] = curve
    own = solve(Regression(A, b, form="normalized"))
    best = min(value for curve in curves.values() for _, value in curve)
    entry: dict[str, Any] = {"n": n, "d": d, "condition": condition, "noise": noise, "solvers": {}}
    for name, curve in curves.items():
        reached = {f"{gap:g}": next((t for t, value in curve if value <= best * (1 + gap)), None) for gap in (1e-3, 1e-6, 1e-10)}
        entry["solvers"][name] = {"seconds_to": reached, "evaluations": len(curve), "seconds": curve[-1][0]}
    whole = entry["solvers"]["torch_rescaled from its own start"] = {
        "seconds": own.number("seconds").item(),
        "iterations": own.number("iterations").item(),
        "reads": own.number("reads").item(),
        "seconds_reads": own.number("seconds_reads").item(),
        "seconds_grams": own.number("seconds_grams").item(),
        "gap": own.loss.item() / best - 1,
    }
    reach = {name: s["seconds_to"]["1e-06"] for name, s in entry["solvers"].items() if "seconds_to" in s}
    text = ", ".join(f"{name} {'-' if t is None else f'{t:.2f}'}" for name, t in reach.items())
    print(
        f"n {n}, d {d}, condition {condition:g}, noise {noise}: seconds to 1e-6: {text}; own start {whole['seconds']:.2f}",
        flush=True,
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
    cases = (
        [(100_000, 64, 1e2, 0.05)] if options.quick else list(itertools.product([100_000], [64], [1.0, 1e2, 1e4], [0.0, 0.05, 0.3]))
    )
    result["solves"] = [solve_case(*case, repeats=options.repeats) for case in cases]
    write_json(options.out, result)


if __name__ == "__main__":
    main()
