# SPDX-License-Identifier: BSD-3-Clause
"""Whole solves of regressions: torch_rescaled's methods among themselves, and against other solvers from one start."""

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from timing import HERE
from torch import Tensor

from torch_rescaled import Regression, regression_loss, solve

PICTURE = HERE.parent / "docs" / "images" / "regression_profile.png"
METHODS = ("auto", "newton", "lbfgs")
GAPS = (1e-6, 1e-10)
Record = Callable[[float], None]
KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "exp": (np.exp, np.exp),
    "cosh": (np.cosh, np.sinh),
    "sinh": (np.sinh, np.cosh),
}


@dataclass(frozen=True)
class Case:
    n: int
    d: int
    condition: float
    noise: float
    kind: str = "exp"
    form: str = "normalized"

    def problem(self, seed: int = 0) -> Regression:
        """Rows with singular values spread by `condition`, logits of standard deviation 1, multiplicative noise on b; for sinh an
        intercept, so that the sum of u is not about zero."""
        r = np.random.default_rng(seed)
        A = (r.normal(size=(self.n, self.d)) * np.logspace(0, -np.log10(self.condition), self.d)) @ np.linalg.qr(
            r.normal(size=(self.d, self.d))
        )[0].T
        z = A @ np.linalg.lstsq(A[: 20 * self.d], r.normal(size=20 * self.d), rcond=None)[0]
        z /= z.std()
        if self.kind == "sinh":
            A, z = np.concatenate([A, np.ones((self.n, 1))], 1), z + 0.7
        u = KINDS[self.kind][0](z)
        b = (u if self.form == "plain" else u / u.sum()) * (1 + self.noise * r.normal(size=self.n))
        return Regression(torch.from_numpy(A), torch.from_numpy(b), kind=self.kind, form=self.form)


class Dense:
    """Loss, gradient and Gauss-Newton Hessian in numpy, as one writes them: two products for loss and gradient."""

    def __init__(self, problem: Regression) -> None:
        self.A, self.b, self.form = problem.A.numpy(), problem.b.numpy(), problem.form
        self.u, self.du = KINDS[problem.kind]
        self.shifted = problem.kind == "exp" and problem.form == "normalized"

    def point(self, z: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        """loss, f, derivative of f's numerator, unit."""
        z = z - z.max() if self.shifted else z
        f, df = self.u(z), self.du(z)
        total = f.sum()
        if self.form == "normalized":
            f, df = f / total, df / total
        unit = total if self.form == "rescaled" else 1.0
        c = f - unit * self.b
        return 0.5 * c @ c, f, df, unit

    def rows(self, f: np.ndarray, df: np.ndarray, unit: float) -> np.ndarray:
        """The gradient's, by which A^T is multiplied."""
        c = f - unit * self.b
        beta = {"plain": 0.0, "normalized": f @ c, "rescaled": c @ self.b}[self.form]
        return df * (c - beta)

    def gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, f, df, unit = self.point(self.A @ x)
        return loss, self.A.T @ self.rows(f, df, unit)

    def hessian(self, f: np.ndarray, df: np.ndarray) -> np.ndarray:
        H = self.A.T @ ((df * df)[:, None] * self.A)
        if self.form == "plain":
            return H
        p = self.A.T @ df
        other = f if self.form == "normalized" else self.b
        q = self.A.T @ (other * df)
        return H - np.outer(p, q) - np.outer(q, p) + (other @ other) * np.outer(p, p)


def numpy_newton(dense: Dense, x: np.ndarray, record: Record) -> None:
    """Gauss-Newton with the diagonal plus rank-2 Hessian, halving, two to three reads an iteration."""
    for _ in range(100):
        loss, f, df, unit = dense.point(z := dense.A @ x)
        record(loss)
        g, H = dense.A.T @ dense.rows(f, df, unit), dense.hessian(f, df)
        try:
            step = -scipy.linalg.cho_solve(scipy.linalg.cho_factor(H + 1e-12 * np.diag(np.diag(H))), g)
        except np.linalg.LinAlgError:
            return
        if -g @ step <= 1e-15 * loss:
            return
        t, factor = dense.A @ step, 1.0
        while not dense.point(z + factor * t)[0] < loss:
            factor /= 2
            if factor < 1e-6:
                return
        x = x + factor * step


def scaled_to_columns(problem: Regression) -> tuple[Regression, Tensor]:
    """What a user of a first-order method would do."""
    scale = problem.A.square().mean(0).sqrt()
    return Regression(problem.A / scale, problem.b, kind=problem.kind, form=problem.form), scale


def lbfgs_b(problem: Regression, x0: Tensor, record: Record) -> None:
    scaled, scale = scaled_to_columns(problem)
    dense, start = Dense(scaled), (x0 * scale).numpy()
    factor = 1 / dense.gradient(start)[0]

    def f(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = dense.gradient(x)
        record(value)
        return value * factor, gradient * factor

    options = {"maxiter": 1000, "maxfun": 1000, "ftol": 1e-15, "gtol": 1e-12}
    scipy.optimize.minimize(f, start, jac=True, method="L-BFGS-B", options=options)


def torch_lbfgs(problem: Regression, x0: Tensor, record: Record) -> None:
    """torch.optim.LBFGS, on values and gradients by PyTorch's own operators and autograd."""
    scaled, scale = scaled_to_columns(problem)
    x = (x0 * scale).clone().requires_grad_()
    u = getattr(torch, problem.kind)
    factor = 1 / Dense(scaled).gradient(x.detach().numpy())[0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        f, b = u(scaled.A @ x), scaled.b
        if problem.form == "normalized":
            f = f / f.sum()
        elif problem.form == "rescaled":
            b = f.sum() * b
        loss = factor * (f - b).square().sum() / 2
        loss.backward()
        record(loss.item() / factor)
        return loss

    optimizer = torch.optim.LBFGS(
        [x], max_iter=800, max_eval=1000, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    optimizer.step(closure)


def trust_region(problem: Regression, x0: Tensor, record: Record) -> None:
    """scipy's least_squares (TRF) on residuals and their Jacobian."""
    dense = Dense(problem)

    def residual(x: np.ndarray) -> np.ndarray:
        loss, f, _, unit = dense.point(dense.A @ x)
        record(loss)
        return np.asarray(f - unit * dense.b)

    def jacobian(x: np.ndarray) -> np.ndarray:
        _, f, df, _ = dense.point(dense.A @ x)
        J = df[:, None] * dense.A
        if dense.form == "plain":
            return np.asarray(J)
        return np.asarray(J - np.outer(f if dense.form == "normalized" else dense.b, df @ dense.A))

    scipy.optimize.least_squares(residual, x0.numpy(), jacobian, x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=100)


def contestants(problem: Regression, x0: Tensor) -> dict[str, Callable[[Record], None]]:
    def ours(method: str) -> Callable[[Record], None]:
        def run(record: Record) -> None:
            # The loss of the problem's own form: a rescaled solve goes by way of the normalized one.
            rescaled = problem.form == "rescaled"

            def see(s: Any) -> None:
                record(regression_loss(problem.A, problem.b, s.x, kind=problem.kind).item() if rescaled else s.loss.item())

            solve(problem, x0, method=method, callback=see)

        return run

    return {
        **{f"torch_rescaled, {method}": ours(method) for method in METHODS},
        "numpy Newton": lambda record: numpy_newton(Dense(problem), x0.numpy(), record),
        "scipy TRF": lambda record: trust_region(problem, x0, record),
        "scipy L-BFGS-B": lambda record: lbfgs_b(problem, x0, record),
        "torch LBFGS": lambda record: torch_lbfgs(problem, x0, record),
    }


def race(case: Case, repeats: int, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """All from one start, off the solution's scale; ours have better ones of their own. Of `repeats` the fastest counts."""
    problem = case.problem()
    own = {method: solve(problem, method=method) for method in METHODS}
    x0 = solve(problem, max_iterations=0).x * 0.5
    curves: dict[str, list[tuple[float, float]]] = {}
    for turn in range(repeats):
        order = [(name, run) for name, run in contestants(problem, x0).items() if name not in leave_out]
        order = order[turn % len(order) :] + order[: turn % len(order)]
        for method in METHODS:  # not timed: nobody inherits cold caches and sleeping threads
            solve(problem, x0, method=method)
        for name, run in order:
            curve: list[tuple[float, float]] = []
            start = time.perf_counter()
            with np.errstate(all="ignore"):
                run(lambda value, curve=curve, start=start: curve.append((time.perf_counter() - start, value)))  # type: ignore[misc]
            if name not in curves or curve[-1][0] < curves[name][-1][0]:
                curves[name] = curve
    # A minimizer that ours certify; in the rescaled form others may run off to lower losses where u vanishes.
    own_losses = [s.loss.item() for s in own.values() if s.status.converged]
    seen = own_losses if case.form == "rescaled" and own_losses else [v for c in curves.values() for _, v in c] + own_losses
    best = min(value for value in seen if not math.isnan(value))
    size = regression_loss(problem.A, torch.zeros_like(problem.b), own["newton"].x, kind=case.kind, form=case.form).item()
    floor = 1e-24 * size  # below is rounding
    entry: dict[str, Any] = {**vars(case), "solvers": {}, "own_start": {}}
    for name, curve in curves.items():
        reached = {f"{gap:g}": next((t for t, v in curve if v <= best * (1 + gap) + floor), None) for gap in GAPS}
        entry["solvers"][name] = {"seconds_to": reached, "evaluations": len(curve), "seconds": curve[-1][0]}
    for method, s in own.items():
        numbers = {
            name: s.number(name).item() for name in ("iterations", "reads", "grams", "seconds_reads", "seconds_grams", "seconds")
        }
        entry["own_start"][method] = numbers | {"status": s.status.name, "gap": s.loss.item() / best - 1 if best > floor else 0.0}
    text = ", ".join(
        f"{name} {'-' if (t := s['seconds_to']['1e-06']) is None else f'{t:.3f}'}" for name, s in entry["solvers"].items()
    )
    print(f"{vars(case)}: seconds to 1e-6: {text}", flush=True)
    return entry


def compare_methods(case: Case, repeats: int) -> dict[str, Any]:
    """Medians of whole solves from their own starts, interleaved."""
    problem = case.problem()
    samples: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(repeats):
        for method, times in samples.items():
            start = time.perf_counter()
            found = solve(problem, method=method)
            times.append(time.perf_counter() - start)
            if method == "auto":
                chosen = found.method
    seconds = {method: statistics.median(times) for method, times in samples.items()}
    ratio = seconds["auto"] / min(seconds["newton"], seconds["lbfgs"])
    print(
        f"{vars(case)}: { ({m: round(s, 4) for m, s in seconds.items()}) }, auto over the best {ratio:.2f} ({chosen})", flush=True
    )
    return {**vars(case), "seconds": seconds, "auto_over_best": ratio, "chosen": chosen}


def draw_profile(races: list[dict[str, Any]], path: Path) -> None:
    """The share of problems that a solver has brought to 1e-6 and 1e-10 within a factor of the fastest one's time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, gap in zip(axes, GAPS, strict=True):
        for name in races[0]["solvers"]:
            factors = []
            for race_ in races:
                times = {other: s["seconds_to"][f"{gap:g}"] for other, s in race_["solvers"].items()}
                fastest = min((t for t in times.values() if t is not None), default=None)
                if fastest is not None and times[name] is not None:
                    factors.append(times[name] / fastest)
            steps = [1.0, *sorted(factors), 1e4]
            axis.step(steps, [i / len(races) for i in (0, *range(1, len(factors) + 1), len(factors))], where="post", label=name)
        axis.set(
            xscale="log",
            xlim=(1, 1000),
            ylim=(0, 1.03),
            xlabel="time over the fastest solver's",
            title=f"to {gap:g} of the best loss",
        )
    axes[0].set_ylabel(f"share of {len(races)} problems")
    axes[0].legend(fontsize="small", loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main_case() -> Case:
    return Case(100_000, 64, 1e2, 0.05)


def run(quick: bool, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    conditions, noises, forms = (1.0, 1e2, 1e4), (0.0, 0.05, 0.3), ("rescaled", "normalized", "plain")
    grid = list(itertools.product(conditions, noises, KINDS, forms))
    races = [Case(20_000, 32, *case) for case in (grid[13:14] if quick else grid)]
    sizes = ((100_000, 64),) if quick else ((200_000, 16), (100_000, 64), (20_000, 256))
    pairs = [("exp", "normalized")] if quick else list(itertools.product(KINDS, forms))
    result: dict[str, Any] = {"main": race(main_case(), 2, leave_out=("scipy TRF", "scipy L-BFGS-B") if quick else ())}
    result["methods"] = [
        compare_methods(Case(n, d, 1e2, noise, *pair), max(repeats, 3))
        for (n, d), noise, pair in itertools.product(sizes, (0.05, 0.3), pairs)
    ]
    result["races"] = [race(case, repeats) for case in races]
    if not quick:
        draw_profile(result["races"], PICTURE)
    return result
