# SPDX-License-Identifier: BSD-3-Clause
"""What gpu_exercise.py runs of the two families of regressions: every primitive on the device and on the CPU.

Primitives that begin with another's results are given the CPU's on both sides. What a point's numbers are scaled by may differ:
those are compared on one scale.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Pairs = dict[str, list[tuple[Tensor, Tensor]]]  # by primitive: the device's results, the CPU's
Results = list[Tensor]
Compared = Callable[[Results, Results], list[tuple[Tensor, Tensor]]]

ours = theirs = torch.ops.torch_rescaled  # on the device, on the CPU
KINDS, FORMS = ("exp", "cosh", "sinh"), ("rescaled", "normalized", "plain")


class Sides:
    """A family's primitives, called on both sides; what they give is kept in `pairs`."""

    def __init__(self, family: str, device: str) -> None:
        self.family, self.device = family, device
        self.pairs: Pairs = {}

    def call(self, name: str, *arguments: object, compared: Compared | None = None) -> Results:
        """The CPU's results."""

        def results(ops: object, *arguments: object) -> Results:
            out = getattr(ops, f"_{self.family}_{name}")(*arguments)
            return [out] if isinstance(out, Tensor) else list(out)

        moved = (t.to(self.device) if isinstance(t, Tensor) else t for t in arguments)
        there = [t.cpu() for t in results(ours, *moved)]
        here = results(theirs, *arguments)
        pairs = compared(there, here) if compared else list(zip(there, here, strict=True))
        self.pairs.setdefault(name, []).extend(pairs)
        return here


def split(dimension: int) -> Compared:
    """Each number or row of a single result by itself: their sizes differ."""
    return lambda there, here: list(zip(there[0].unbind(dimension), here[0].unbind(dimension), strict=True))


def regression_point(there: Results, here: Results) -> list[tuple[Tensor, Tensor]]:
    """Statistics, and gradient and Hessian of the same scale (csrc/kernels/regression/parameters.h)."""
    statistics, expected = there[0].unbind(-1), here[0].unbind(-1)
    half = ((statistics[0] - expected[0]) / 2).exp()  # of the two scales
    powers = {1: 2, 2: 2, 5: 1, 6: 1, 8: 2}  # loss, penalty; unit, beta; magnitude
    pairs = [
        (s * half ** powers.get(i, 0), e) for i, (s, e) in enumerate(zip(statistics, expected, strict=True)) if i not in (0, 3)
    ]
    pairs.append(((statistics[3] - expected[3]).exp(), torch.ones_like(expected[3])))  # the logarithm of a sum
    for scaled, other in zip(there[1:], here[1:], strict=True):
        pairs.append((scaled * half.square().view(*half.shape, *[1] * (scaled.dim() - half.dim())), other))
    return pairs


def matrix_statistics(form: str) -> Compared:
    """As the above, of rows (csrc/kernels/matrix_regression/parameters.h); their reference is in octaves."""

    def compared(there: Results, here: Results) -> list[tuple[Tensor, Tensor]]:
        statistics, expected = there[0].double().unbind(-1), here[0].double().unbind(-1)
        half = (statistics[0] - expected[0]).exp2()
        powers = (1, 1 if form == "rescaled" else 0, 0, 0 if form == "normalized" else 2)  # sum, beta, square, loss
        return [(s * half**power, e) for s, e, power in zip(statistics[1:], expected[1:], powers, strict=True)]

    return compared


def regression(few: bool, device: str) -> Iterator[tuple[torch.dtype, str, Pairs]]:
    """Problems that share b, one of few columns, one of more than a tile; `dtype` is of A."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    cases = [(torch.float32, "sinh", "rescaled"), (torch.float64, "exp", "normalized"), (torch.bfloat16, "exp", "plain")]
    for dtype, kind, form in cases if few else itertools.product(dtypes, KINDS, FORMS):
        both = Sides("regression", device)
        for n, d in [(77, 5), (300, 37)] if few else [(77, 5), (300, 37), (1030, 130)]:
            regress(both, dtype, kind, form, n, d)
        yield dtype, f"{kind} {form}", both.pairs


def regress(both: Sides, dtype: torch.dtype, kind: str, form: str, n: int, d: int) -> None:
    generator, type_ = torch.Generator().manual_seed(n), torch.float64 if dtype == torch.float64 else torch.float32

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(type_)

    # A x: 1.5 and deviations of 1, so that the sum of sinh is not near 0.
    A, x, v = new(3, n, d).to(dtype), new(3, d) / d**0.5, new(3, d)
    A[..., 0], x[..., 0] = 1, 1.5
    b = new(1, n).abs() * (4 if form == "plain" else 1 / n)
    row_weight, penalty_weight = new(3, n).abs() + 0.1, new(1, n).abs() / n
    target, settings = (b, row_weight, penalty_weight), (kind, form)

    both.call("evaluate", A, b, x, row_weight, penalty_weight, *settings, compared=regression_point)
    both.call("gauss_newton", A, b, x, row_weight, *settings, compared=regression_point)
    for curvature in ("gauss_newton", "full"):
        both.call("product", A, b, x, row_weight, penalty_weight, v, *settings, curvature)
    (logits,) = both.call("matvec", A, x)
    (direction,) = both.call("matvec", A, v)
    steps = torch.tensor([0.0, 0.1, -0.2], dtype=torch.float64).expand(3, 3)
    both.call("statistics", logits, direction, steps, *target, *settings, compared=regression_point)
    (found,) = both.call("statistics", logits, None, None, *target, *settings, compared=regression_point)
    statistics = found.squeeze(-2)
    (rows,) = both.call("rows", logits, statistics, *target, *settings, compared=split(-2))
    both.call("model", rows, direction, compared=split(-1))
    for curvature in ("gauss_newton", "clipped", "full"):
        both.call("curvature", A, rows, statistics, curvature)


def regression_csr(few: bool, device: str) -> Iterator[tuple[torch.dtype, str, Pairs]]:
    """Problems that share A's pattern, of few and of many columns, with an intercept; rows are not sorted."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    cases = [(torch.float32, "sinh", "rescaled"), (torch.float64, "exp", "normalized"), (torch.bfloat16, "exp", "plain")]
    for number, (dtype, kind, form) in enumerate(cases if few else itertools.product(dtypes, KINDS, FORMS)):
        both, index = Sides("regression", device), (torch.int32, torch.int64)[number % 2]
        for n, d, each in [(77, 40, 5), (300, 700, 9)] if few else [(77, 40, 5), (300, 700, 9), (5000, 300, 30)]:
            regress_csr(both, dtype, index, kind, form, n, d, each)
        yield dtype, f"{kind} {form}", both.pairs


def regress_csr(both: Sides, dtype: torch.dtype, index: torch.dtype, kind: str, form: str, n: int, d: int, each: int) -> None:
    generator, type_ = torch.Generator().manual_seed(n), torch.float64 if dtype == torch.float64 else torch.float32

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(type_)

    columns = 1 + torch.rand(n, d - 1, generator=generator).argsort(-1)[:, :each]
    columns[:, 0] = 0
    values, x, v = new(2, n, each), new(2, d) / each**0.5, new(2, d)
    values[..., 0], x[..., 0] = 1, 1.5
    A, b = values.flatten(1).to(dtype), new(1, n).abs() * (4 if form == "plain" else 1 / n)
    row_weight, penalty_weight = new(2, n).abs() + 0.1, new(1, n).abs() / n
    target, settings = (b, row_weight, penalty_weight), (kind, form)
    pattern = (torch.arange(0, n * each + 1, each).to(index)[None], columns.flatten().to(index)[None])

    both.call("evaluate", A, b, x, row_weight, penalty_weight, *settings, *pattern, compared=regression_point)
    for curvature in ("gauss_newton", "full"):
        both.call("product", A, b, x, row_weight, penalty_weight, v, *settings, curvature, *pattern)
    (logits,) = both.call("matvec", A, x, *pattern)
    statistics = theirs._regression_statistics(logits, None, None, *target, *settings).squeeze(-2)
    rows = theirs._regression_rows(logits, statistics, *target, *settings)
    for squared in (False, True):
        both.call("transposed", A, new(2, 6, n), squared, *pattern, d)
    for curvature in ("gauss_newton", "clipped", "full"):
        both.call("curvature", A, rows, statistics, curvature, *pattern, d)


def matrix_regression(few: bool, device: str) -> Iterator[tuple[torch.dtype, str, Pairs]]:
    """Problems that share the key and a mask, causal ones too, with every source of the target."""
    sources = ("dense", "exp", "sinh", "sparse", "zero")
    cases = [(torch.float32, "sinh", "rescaled", sources[:2]), (torch.float64, "exp", "normalized", sources[3:])]
    everything = itertools.product((torch.float32, torch.float64), KINDS, FORMS, [sources])
    for dtype, kind, form, some in cases if few else everything:
        both = Sides("matrix_regression", device)
        for source in some:
            for (n1, n2, d), is_causal in [((77, 130, 24), False), ((130, 77, 64), True)]:
                map_regress(both, dtype, (is_causal, kind, form, source), n1, n2, d)
        yield dtype, f"{kind} {form}", both.pairs


def map_regress(both: Sides, dtype: torch.dtype, settings: tuple[bool, str, str, str], n1: int, n2: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n1)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    is_causal, _, form, source = settings
    # Scores: 1.5 and deviations of 1, so that no row's sum of sinh is near 0.
    query, key, mask = new(2, n1, d) / d**0.5, new(1, n2, d), torch.rand(1, 1, n2, generator=generator) > 0.1
    query[..., 0], key[..., 0], mask[..., 0] = 1.5, 1, True
    scale = 4 if form == "plain" else 1 / n2
    target, rows, columns, values = None, None, None, None
    if source == "dense":
        target = new(2, n1, n2).abs() * scale
    elif source == "sparse":
        stored = torch.rand(n1, n2, generator=generator) < 0.1
        stored[3] = False
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), stored.sum(-1).cumsum(0)]).unsqueeze(0)
        columns = stored.nonzero()[:, 1].unsqueeze(0)
        values = new(2, int(stored.sum())).abs() * (4 if form == "plain" else 0.1)
    elif source != "zero":  # a teacher
        rows, columns = new(2, n1, 20) / 20**0.5, new(1, n2, 20)
        rows[..., 0], columns[..., 0] = 1.5, 1
        values = theirs._matrix_regression_statistics(
            rows, columns, None, mask, None, None, None, is_causal, source, "rescaled", "zero"
        )
    point = (query, key, target, mask, rows, columns, values)
    (statistics,) = both.call("statistics", *point, *settings, compared=matrix_statistics(form))
    at = (*point, statistics)
    both.call("gradient", *at, *settings)
    for full in (False, True):
        moments = both.call("moments", *at, *settings, full)
        both.call("product", *at, *moments, new(2, n1, d), *settings, full)
    along = (new(2, n1, d), new(1, n2, d), new(2, n1, n2) * scale if target is not None else None)
    (tangents,) = both.call("tangents", *along, *at, *settings, compared=split(-1))
    both.call("gradient_tangent", *along, tangents, *at, *settings)
    weight, still = new(2, n1), (None, None, None)
    for name in ("columns", "elements") if target is not None else ("columns",):
        both.call(name, *still, None, weight, *at, *settings)
        both.call(name, *along, tangents, weight, *at, *settings)
