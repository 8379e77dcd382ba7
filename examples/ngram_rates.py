# SPDX-License-Identifier: BSD-3-Clause
"""How many more bytes does a line go on? A log-linear rate over n-grams of what stands before, in Python's standard library.

A row is a place in the text, its features the n-grams of up to four bytes within the last eight: those that end there, and
how often the others occur. The rate is exp(A x) times the mean, fitted by least squares (the plain form) to the bytes that are left
of the line. After some n-grams no line ever goes on: x would run off to -infinity, and others would learn the noise. A ridge holds
them back: rows of one 1 each, of no weight in the fit and with their logit penalized. Held out are one in ten files.

python examples/ngram_rates.py                  # 50000 rows, some ten seconds
python examples/ngram_rates.py --rows 1000000 --plot docs/images/ngram_time.png
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from language_model.corpus import read_standard_library
from scipy.sparse import csr_array, eye_array, vstack

from torch_rescaled import Regression, Solution, regression_evaluate, solve

ORDERS, WINDOW = 4, 8
SHRINK = 5  # rows of the mean that a table's cell of few rows is averaged with
FTOL = 1e-6  # of a loss that is mostly noise: held-out errors move in the fourth digit at most
FIRST_ROWS = 200_000  # which n-grams are frequent is known from so many


def ngrams(text: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64 [rows, 26]: the bytes, newest lowest, with the order above them and a bit for those that end at the place."""
    back = text[places[:, None] - np.arange(WINDOW)].astype(np.int64)
    listed = []
    for order in range(1, ORDERS + 1):
        grams = sum(back[:, i : WINDOW - order + 1 + i] << 8 * i for i in range(order)) + (order << 32)
        grams[:, 0] += 1 << 35
        listed.append(grams)
    return np.concatenate(listed, 1)


def spelled(gram: int) -> str:
    order = gram >> 32 & 7
    text = bytes(gram >> 8 * i & 255 for i in reversed(range(order))).decode("latin1")
    return f"{text!r} {'just now' if gram >> 35 else 'lately'}"


@dataclass(frozen=True)
class Features:
    """The columns: an intercept, then these n-grams."""

    vocabulary: np.ndarray  # int64 [columns - 1], ascending

    @classmethod
    def most_frequent(cls, grams: np.ndarray, columns: int) -> "Features":
        found, counts = np.unique(grams[:FIRST_ROWS], return_counts=True)
        return cls(np.sort(found[np.argsort(-counts, kind="stable")[: columns - 1]]))

    def matrix(self, grams: np.ndarray) -> csr_array:
        """Ones [rows, columns]; what occurs twice in a row stands there twice, and is added where A is read."""
        places = np.searchsorted(self.vocabulary, grams).clip(max=len(self.vocabulary) - 1)
        kept = np.pad(self.vocabulary[places] == grams, ((0, 0), (1, 0)), constant_values=True)
        columns = np.pad(places.astype(np.int32) + 1, ((0, 0), (1, 0)))[kept]
        starts = np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int32)
        return csr_array((np.ones(len(columns)), columns, starts), shape=(len(grams), len(self.vocabulary) + 1))


def places_of(text: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Random places of the text, none twice, each with a window before it and the end of a line after it."""
    last = np.flatnonzero(text == ord("\n"))[-1]
    return WINDOW + np.random.default_rng(seed).permutation(last - WINDOW)[:count]


def left_of_line(text: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bytes after the place and before the end of the line."""
    ends = np.flatnonzero(text == ord("\n"))
    return (ends[np.searchsorted(ends, places, side="right")] - places - 1).astype(np.float64)


def table_of_pairs(train: np.ndarray, wanted: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """The simple thing to do: the mean after the same two bytes."""
    pairs, others = (grams[:, WINDOW] & 0xFFFF for grams in (train, held_out))
    counts, sums = np.bincount(pairs, minlength=1 << 16), np.bincount(pairs, wanted, minlength=1 << 16)
    return ((sums + SHRINK * wanted.mean()) / (counts + SHRINK))[others]


def report(name: str, rate: np.ndarray, wanted: np.ndarray) -> None:
    error = np.square(rate - wanted).mean()
    print(f"  {name:18} {error**0.5:6.2f} bytes, {1 - error / wanted.var():6.1%} of the variance explained")


def problem_of(A: csr_array, b: np.ndarray, ridge: float) -> Regression:
    """Least squares plus ridge^2 / 2 times the squares of x but the intercept, by a row for each."""
    rows, columns = A.shape
    matrix = vstack([A, eye_array(columns, format="csr")[1:]], format="csr")
    of_x = torch.arange(matrix.shape[0]) >= rows
    target = torch.from_numpy(np.pad(b, (0, columns - 1)))
    return Regression(matrix, target, row_weight=(~of_x).double(), penalty_weight=ridge * of_x.double(), form="plain")


def seconds_of_a_read(problem: Regression, x: torch.Tensor, repeats: int = 7) -> float:
    """Loss and gradient, median."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        regression_evaluate(problem.A, problem.b, x, problem.row_weight, problem.penalty_weight, form="plain")
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def described(solution: Solution) -> str:
    seconds, iterations, reads = (solution.number(name).item() for name in ("seconds", "iterations", "reads"))
    each = f"{seconds:.2f} s, {iterations:.0f} iterations, {reads:.0f} reads of A"
    return f"{each}, {solution.status.name} by {solution.method}"


def picture(path: Path, points: list[tuple[int, float, Solution]]) -> None:
    """Of nonzeros, seconds of a read, and solutions."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    nonzeros, reads, solutions = zip(*points, strict=True)
    solves = [found.number("seconds").item() for found in solutions]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(nonzeros, solves, marker="o", label="solve")
    axes.loglog(nonzeros, reads, marker="o", label="loss and gradient")
    for times in (solves, reads):
        axes.loglog(nonzeros, [times[-1] * k / nonzeros[-1] for k in nonzeros], color="gray", linestyle=":", linewidth=1)
    for place, seconds, found in zip(nonzeros, solves, solutions, strict=True):
        text = f"{found.number('reads'):.0f} reads"
        axes.annotate(text, (place, seconds), (0, -16), textcoords="offset points", fontsize="small", ha="center")
    axes.margins(x=0.12)
    axes.set(xlabel="nonzeros of A", ylabel="seconds")
    axes.set_title("n-gram rates, nested rows (dotted: proportional)", fontsize="medium")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=4096, help="the intercept, and the most frequent n-grams")
    parser.add_argument("--ridge", type=float, default=10.0, help="its square is that of an x of 1; rates are in units of the mean")
    parser.add_argument(
        "--plot", type=Path, help="solve nested subsets of the rows too, from 10000, and draw time against nonzeros"
    )
    options = parser.parse_args()

    begin = time.perf_counter()
    corpus = read_standard_library()
    text, other = corpus.train.numpy(), corpus.held_out.numpy()
    places, other_places = places_of(text, options.rows, 0), places_of(other, options.rows // 5, 1)
    grams, other_grams = ngrams(text, places), ngrams(other, other_places)
    features = Features.most_frequent(grams, options.columns)
    A, held_out = features.matrix(grams), features.matrix(other_grams)
    wanted, other_wanted = left_of_line(text, places), left_of_line(other, other_places)
    print(f"{len(text) / 1e6:.1f} MB of text, a line goes on for {wanted.mean():.1f} bytes in the mean")
    print(f"A: {A.shape[0]} rows, {A.shape[1]} columns, {A.nnz} nonzeros, built in {time.perf_counter() - begin:.1f} s")

    b = wanted / wanted.mean()
    problem = problem_of(A, b, options.ridge)
    solution = solve(problem, ftol=FTOL).raise_for_status()
    read = seconds_of_a_read(problem, solution.x)
    print(f"{described(solution)}; {torch.get_num_threads()} threads")
    print(f"loss and gradient: {1e3 * read:.2f} ms, {1e9 * read / A.nnz:.2f} ns a nonzero")

    print(f"root mean square error on {len(other_wanted)} rows of {corpus.held_out_files} held-out files:")
    report("mean rate", np.full_like(other_wanted, wanted.mean()), other_wanted)
    report("table of 2 bytes", table_of_pairs(grams, wanted, other_grams), other_wanted)
    x = solution.x.numpy()
    report("exp(A x)", wanted.mean() * np.exp(held_out @ x), other_wanted)
    report("  its own rows", wanted.mean() * np.exp(A @ x), wanted)

    print("of three bytes and more the most telling, by what their part moves the logits, and the factor of the rate:")
    spread = (A.multiply(A).mean(0) - np.square(A.mean(0))).clip(0)[1:] ** 0.5
    telling = np.abs(x[1:]) * spread * (features.vocabulary >> 32 & 7 >= 3)
    for place in np.argsort(-telling)[:16]:
        print(f"  {spelled(int(features.vocabulary[place])):24} x {np.exp(x[1 + place]):.2f}")

    if options.plot:
        points = []
        for rows in (k for k in (10_000, 30_000, 100_000, 300_000) if k < options.rows):
            part = problem_of(A[:rows], b[:rows], options.ridge)
            found = solve(part, ftol=FTOL)
            points.append((int(A.indptr[rows]), seconds_of_a_read(part, found.x), found))
            print(f"{rows} rows, {points[-1][0]} nonzeros: a read {1e3 * points[-1][1]:.2f} ms; {described(found)}")
        picture(options.plot, [*points, (A.nnz, read, solution)])
        print(f"wrote {options.plot}")


if __name__ == "__main__":
    main()
