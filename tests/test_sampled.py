# SPDX-License-Identifier: BSD-3-Clause
"""Hessians of sampled rows: their spectral error, positive semidefinite and reproducible; solves by them, and by products."""

import functools
import itertools
import math
import re

import pytest
import torch
from oracle_regression import FORMS, KINDS
from test_solve import PHI, planted
from torch.utils.flop_counter import FlopCounterMode

from torch_rescaled import MatrixRegression, Regression, Status, regression_evaluate, solve

OPS = torch.ops.torch_rescaled


def rare_columns(n=20000, d=32, std=0.5, kind="exp", seed=1):
    """Rows of which a few alone have some of the columns, too small there to show in their length: A, b, x."""
    g = torch.Generator().manual_seed(seed)
    A, x = torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(d, generator=g, dtype=torch.float64)
    few = torch.rand(n, d // 4, generator=g) < 40 / n
    A[:, : d // 4] *= 0.3 * few
    x[: d // 4] = 0
    x *= std / (A @ x).std()
    u = PHI[kind](A @ x)
    return A, u / u.sum() * (1 + 0.05 * torch.randn(n, generator=g, dtype=torch.float64)), x


def hessians(point, kind, form, sampling, rows, seeds):
    """The Hessian of all rows, and those of samples, in the same units."""
    A, b, x, row_weight, penalty_weight = point
    logits = OPS._regression_matvec(A, x)
    numbers = OPS._regression_statistics(logits, None, None, b, row_weight, penalty_weight, kind, form)[0]
    vectors = OPS._regression_rows(logits, numbers, b, row_weight, penalty_weight, kind, form)
    exact = OPS._regression_curvature(A, vectors, numbers, "gauss_newton")[1]
    return exact, [OPS._regression_sampled_hessian(*point, kind, form, sampling, rows, seed) for seed in seeds]


def spectral_error(exact, sampled):
    """|H^-1/2 H_S H^-1/2 - 1|."""
    factor = torch.linalg.cholesky(exact)
    left = torch.linalg.solve_triangular(factor, sampled, upper=False)
    both = torch.linalg.solve_triangular(factor, left.mT, upper=False)
    return torch.linalg.eigvalsh(both - torch.eye(len(both), dtype=both.dtype)).abs().max().item()


@pytest.mark.parametrize(("kind", "form"), [("exp", "normalized"), ("cosh", "normalized"), ("sinh", "rescaled"), ("exp", "plain")])
def test_the_spectral_error_of_leverages_goes_with_the_root_of_the_sample(kind, form):
    """2 sqrt(d / rows), where samples that do not know the rare columns miss them."""
    A, b, x = rare_columns(kind=kind)
    for per_column in (40, 160):
        rows, bound = per_column * 32, 2 / math.sqrt(per_column)
        exact, sampled = hessians((A, b, x, None, None), kind, form, "leverage", rows, range(3))
        error = sum(spectral_error(exact, H) for H in sampled) / 3
        assert 0.3 * bound < error < 1.6 * bound
        for blind in ("uniform", "row_norm"):
            _, others = hessians((A, b, x, None, None), kind, form, blind, rows, range(3))
            assert sum(spectral_error(exact, H) for H in others) / 3 > 2 * error


@pytest.mark.parametrize("sampling", ["weight", "row_norm", "leverage"])
def test_where_rows_are_alike_every_sampling_but_uniform_will_do(sampling):
    A, b, x = planted("exp", n=20000, d=16, spread=2.0)
    point = (A, b, x, None, None)
    exact, (sampled,) = hessians(point, "exp", "normalized", sampling, 40 * 16, [0])
    assert spectral_error(exact, sampled) < 2 / math.sqrt(40) * 1.3
    _, (uniform,) = hessians(point, "exp", "normalized", "uniform", 40 * 16, [0])
    assert spectral_error(exact, uniform) > 1


@pytest.mark.parametrize("sampling", ["weight", "row_norm", "leverage", "uniform"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_positive_semidefinite_and_right_on_average(kind, form, sampling):
    """With weights and a penalty, by samples hardly larger than the number of columns."""
    A, b, x = planted(kind, n=300, d=6, form=form)
    g = torch.Generator().manual_seed(0)
    row_weight = torch.rand(300, generator=g, dtype=A.dtype)
    row_weight[:20] = 0
    point = (A, b, x, row_weight, (0.01 if form == "normalized" else 1.0) * b.abs())
    exact, sampled = hessians(point, kind, form, sampling, 20, range(400))
    for H in sampled[:50]:
        values = torch.linalg.eigvalsh(H)
        assert values[0] >= -1e-13 * values[-1]
    many = torch.stack(sampled)
    off = (many.mean(0) - exact).abs() / (many.std(0) / 20 + 1e-12 * exact.abs().max())
    assert off.max() < 6  # standard errors


def test_a_sample_is_its_seed():
    A, b, x = planted("exp", n=5000, d=8)
    first, again, other = (
        OPS._regression_sampled_hessian(A, b, x, None, None, "exp", "normalized", "leverage", 200, seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    solutions = [
        solve(Regression(A, b, form="normalized"), method="sampled", generator=seed and torch.Generator().manual_seed(seed))
        for seed in (None, None, 1, 1, 2)
    ]
    equal = [torch.equal(one.history[:, 1], two.history[:, 1]) for one, two in itertools.pairwise(solutions)]
    assert equal == [True, False, True, False]


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("method", ["sampled", "cg"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_solutions_are_those_of_newton(kind, form, method):
    A, b, x = planted(kind, n=4000, d=6, form=form, noise=0.1, condition=30.0)
    g = torch.Generator().manual_seed(3)
    row_weight = torch.rand(len(b), generator=g, dtype=b.dtype, device="cpu").to(b.device)
    penalty_weight = (0.01 if form == "normalized" else 1.0) * b.abs()
    problem = Regression(A, b, row_weight, penalty_weight, kind=kind, form=form)
    for x0 in (None, 1.2 * x):
        exact, ours = (solve(problem, x0, method=m) for m in ("newton", method))
        if exact.number("certificate") > 0.25:
            continue  # a rescaled minimum need not be near, nor be one
        assert (ours.status.converged or ours.status is exact.status) and ours.method == method
        assert ours.number("samples") >= 1 and ours.number("grams") < exact.number("grams")
        torch.testing.assert_close(ours.number("log_loss"), exact.number("log_loss"), rtol=1e-9, atol=1e-9)
        if not exact.status.converged:
            continue
        sign = torch.sign(ours.x @ exact.x) if kind == "cosh" else 1
        torch.testing.assert_close(sign * ours.x, exact.x, rtol=1e-4, atol=1e-4 * exact.x.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_single_and_half_precision(dtype):
    A, b, _ = planted("exp", n=4000, d=6, dtype=torch.float32)
    problem = Regression(A.to(dtype), b, form="normalized")
    exact, ours = (solve(problem, method=method) for method in ("newton", "sampled"))
    assert ours.status.converged and ours.number("samples") >= 1
    torch.testing.assert_close(ours.x, exact.x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampling", ["auto", "uniform"])
def test_a_sample_that_misses_gives_way(sampling):
    """To one by leverages, or to a Gram of all rows; the solution is the same."""
    A, b, _ = rare_columns(n=20000, d=32, std=2.0)
    problem = Regression(A, b, penalty_weight=torch.full_like(b, 1e-6), form="normalized")
    exact, ours = (
        solve(problem, method=method, sampling=sampling, sample_rows=40 * 32, max_iterations=300)
        for method in ("newton", "sampled")
    )
    assert ours.status.converged and (ours.number("samples") > 1 or ours.number("grams") > 0)
    torch.testing.assert_close(ours.number("log_loss"), exact.number("log_loss"), rtol=1e-8, atol=1e-8)


def test_too_few_rows_to_sample_from():
    A, b, _ = planted("exp", n=300, d=5)
    exact, ours = (solve(Regression(A, b, form="normalized"), method=method) for method in ("lbfgs", "sampled"))
    assert torch.equal(ours.x, exact.x) and ours.number("samples") == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["sampled", "cg"])
def test_going_on_from_a_state_is_as_if_it_had_not_stopped(form, method):
    A, b, x = planted("exp", n=3000, d=5, noise=0.3, form=form)
    problem = Regression(A, b, form=form)
    again = functools.partial(solve, method=method, sampling="leverage")
    for x0 in (None, 1.5 * x):
        whole = again(problem, x0, generator=torch.Generator().manual_seed(5))
        generator = torch.Generator().manual_seed(5)
        stepwise = again(problem, x0, generator=generator, callback=lambda s: None)
        assert torch.equal(stepwise.x, whole.x) and torch.equal(
            stepwise.history[:, :-1].nan_to_num(), whole.history[:, :-1].nan_to_num()
        )
        for stop in (1, 3):
            first = again(problem, x0, generator=torch.Generator().manual_seed(5), max_iterations=stop)
            rest = again(problem, state=first.state)  # the seed is in the state
            assert torch.equal(rest.x, whole.x) and rest.status is whole.status
            assert rest.number("reads") == whole.number("reads")


@pytest.mark.parametrize("kind", KINDS)
def test_products_alone_where_squares_do_not_fit(kind):
    A, b, x = planted(kind, n=4200, d=2100, spread=0.3, noise=0.01)
    problem = Regression(A, b, kind=kind, form="normalized")
    start = 0.8 * x if kind == "cosh" else None  # of which the signs are not to be had from twice as many rows as columns
    solution = solve(problem, start, method="cg", ftol=1e-6).raise_for_status()
    assert solution.number("grams") == 0 and solution.number("samples") == 0
    _, gradient, _, _ = regression_evaluate(A, b, solution.x, kind=kind, form="normalized")
    _, at_first, _, _ = regression_evaluate(A, b, 0.5 * x, kind=kind, form="normalized")
    assert gradient.norm() < 1e-3 * at_first.norm()
    assert solution.number("log_loss") < regression_evaluate(A, b, x, kind=kind, form="normalized")[0]


def test_sums_of_half_precision_rows_in_one_read():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(2, 1000, 37, generator=g).half()
    weights = torch.randn(1, 6, 1000, generator=g)
    for squared in (False, True):
        kernel = OPS._regression_transposed(A, weights, squared)
        exact = weights.double() @ (A.double().square() if squared else A.double())
        torch.testing.assert_close(kernel.double(), exact, rtol=1e-5, atol=1e-4)


def test_sums_of_rows_are_counted_and_vectorized():
    A, weights = torch.randn(3, 50, 4), torch.randn(2, 50)
    for squared in (False, True):
        with FlopCounterMode(display=False) as counter:
            OPS._regression_transposed(A[0], weights, squared)
        assert counter.get_total_flops() == 50 * 4 * (4 + squared)
        many = torch.vmap(lambda a, squared=squared: OPS._regression_transposed(a, weights, squared))(A)
        torch.testing.assert_close(many, weights @ (A.square() if squared else A))


MESSAGES = [
    (lambda A, b: solve(Regression(A, b), sampling="leverages"), "solve_regression: expected sampling 'auto', 'weight', "),
    (lambda A, b: solve(Regression(A, b), sample_rows=-1), "solve_regression: expected sample_rows >= 0, got -1"),
    (
        lambda A, b: OPS._regression_transposed(A, b[None, 1:]),
        "_regression_transposed: expected weights of shape [*, 400] to match A's rows, got [1, 399]",
    ),
    (lambda A, b: OPS._regression_transposed(A, b), "_regression_transposed: expected weights [*, K, n] with A's 0 leading"),
    (
        lambda A, b: OPS._regression_sampled_hessian(A[None], b[None], A[None, 0], None, None, "exp", "plain", "auto", 0, 0),
        "_regression_sampled_hessian: expected a single problem, b [n], got [1, 400]",
    ),
    (
        lambda A, b: solve(MatrixRegression(A, A, B=A @ A.T), sample_rows=5),
        "solve: expected no sampling, sample_rows or generator with a map",
    ),
]


@pytest.mark.parametrize("case", range(len(MESSAGES)))
def test_bad_input(case):
    call, message = MESSAGES[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call(*planted("exp")[:2])


def test_auto_samples_where_a_gram_is_dear_and_rows_are_many():
    A, b, _ = planted("exp", n=60000, d=192, dtype=torch.float32)
    solution = solve(Regression(A, b, form="normalized"), max_iterations=0)
    assert solution.status is Status.MAX_ITERATIONS
    ratio = solution.number("gram_ratio")
    expected = "sampled" if ratio > 7 else "lbfgs" if ratio > 1 else "newton"
    assert re.fullmatch(rf"{expected}: a Gram costs [0-9.e+]+ reads of A.*", solution.method)
