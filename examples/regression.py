# SPDX-License-Identifier: BSD-3-Clause
"""Regressions of u(A x) on tables that ship with statsmodels and scikit-learn.

1. Visits to a doctor (the RAND health insurance experiment, 20190 people): a rate exp(A x) by least squares, beside statsmodels'
   Gaussian GLM with log link and scipy's trust-region least squares.
2. The ten digits of scikit-learn: the ink of each as a log-linear density over the pixels, ten softmax regressions that share their
   matrix, in the normalized and the rescaled form.

python examples/regression.py        # seconds; writes regression.png
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_rescaled import Regression, Solution, Status, solve


def visits() -> tuple[Tensor, Tensor]:
    """Scaled covariates with an intercept, and the number of visits."""
    from statsmodels.datasets import randhie

    table = randhie.load_pandas().data
    y = torch.from_numpy(table.pop("mdvis").to_numpy(dtype="float64"))
    A = torch.from_numpy(table.to_numpy(dtype="float64"))
    A = (A - A.mean(0)) / A.std(0)
    return torch.cat([torch.ones(len(A), 1, dtype=A.dtype), A], 1), y


def against_statsmodels(A: Tensor, y: Tensor, found: Tensor) -> dict[str, tuple[float, float]]:
    """Seconds, and the largest difference of a coefficient from ours."""
    import scipy.optimize
    import statsmodels.api as sm

    matrix, target = A.numpy(), y.numpy()
    start = torch.zeros(A.shape[1], dtype=A.dtype)
    start[0] = y.mean().log()
    results = {}

    def run(name: str, fit: Any) -> None:
        begin = time.perf_counter()
        x = torch.as_tensor(fit())
        results[name] = (time.perf_counter() - begin, float((x - found).abs().max()))

    family = sm.families.Gaussian(sm.families.links.Log())
    run("statsmodels GLM", lambda: sm.GLM(target, matrix, family).fit(start_params=start.numpy(), tol=1e-14, maxiter=200).params)

    def residual(x: Any) -> Any:
        return (torch.from_numpy(matrix @ x).exp() - y).numpy()

    def jacobian(x: Any) -> Any:
        return (torch.from_numpy(matrix @ x).exp().unsqueeze(1) * A).numpy()

    options = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    run("scipy least_squares", lambda: scipy.optimize.least_squares(residual, start.numpy(), jacobian, **options).x)
    return results


def digits(features: int = 5) -> tuple[Tensor, Tensor]:
    """Products of cosines over the 8 x 8 pixels [64, features^2 - 1], and the ten digits' mean ink [10, 64], each summing to 1."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.data), torch.from_numpy(data.target)
    ink = torch.stack([images[labels == digit].mean(0) for digit in range(10)])
    place = (torch.arange(8, dtype=torch.float64) + 0.5) * torch.pi / 8
    waves = torch.cos(place.unsqueeze(1) * torch.arange(features))
    basis = torch.einsum("if,jg->ijfg", waves, waves).reshape(64, -1)
    return basis[:, 1:], ink / ink.sum(1, keepdim=True)  # without the constant, which a density does not see


def picture(path: Path, counts: Solution, ink: Tensor, fits: dict[str, Solution], A: Tensor) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.4])
    counts.plot(left.subplots())
    left.suptitle("visits: convergence of the plain form")
    axes = right.subplots(1 + len(fits), 10)
    for column in range(10):
        rows = [ink[column], *(torch.softmax(A @ s.x[column], 0) for s in fits.values())]
        for row, density in zip(axes[:, column], rows, strict=True):
            row.imshow(density.reshape(8, 8), cmap="gray_r", vmin=0, vmax=float(ink[column].max()))
            row.set(xticks=[], yticks=[])
    for row, name in zip(axes[:, 0], ["ink", *fits], strict=True):
        row.set_ylabel(name, fontsize=8)
    right.suptitle("digits: 24 coefficients each")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=Path("regression.png"))
    options = parser.parse_args()

    A, y = visits()
    solution = solve(Regression(A, y, form="plain"), verbose=1).raise_for_status()
    seconds, reads = solution.number("seconds"), solution.number("reads")
    print(f"visits: {len(y)} people, {A.shape[1]} coefficients: {seconds:.3f} s, {reads:.0f} reads of A")
    for name, (seconds, difference) in against_statsmodels(A, y, solution.x).items():
        print(f"  {name}: {seconds:.3f} s, coefficients differ by at most {difference:.1e}")

    basis, ink = digits()
    fits = {form: solve(Regression(basis, ink, form=form)) for form in ("normalized", "rescaled")}
    for form, fit in fits.items():
        ends = {status.name: fit.statuses.count(status) for status in Status if status in fit.statuses}
        error = (torch.softmax(fit.x @ basis.T, 1) - ink).abs().sum(1).mean() / 2
        print(f"digits, {form}: {ends}, ink in the wrong place {error:.1%}, certificates {fit.number('certificate').tolist()}")
    picture(options.picture, solution, ink, fits, basis)
    print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
