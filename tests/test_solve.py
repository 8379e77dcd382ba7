# SPDX-License-Identifier: BSD-3-Clause
"""The solver, by every method: truth in 50 digits, certified data, statuses, resuming, batches, derivatives of a solution."""

import functools
import math
import re

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from oracle_regression import FORMS, KINDS
from torch.autograd import gradcheck

from torch_rescaled import Regression, SolveError, Status, newton_step, regression_evaluate, regression_loss, solve

METHODS = ("newton", "lbfgs")  # test_sampled.py: the others
PHI = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}


def planted(kind, n=400, d=5, *, noise=0.05, form="normalized", spread=1.0, seed=0, condition=1.0, dtype=torch.float64):
    """A, b near u(A x) (for plain) or its normalization, and x."""
    with torch.device("cpu"):  # the same data on every device
        g = torch.Generator().manual_seed(seed)
        A = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)
        x = torch.randn(d, generator=g, dtype=torch.float64)
        x = x * torch.logspace(0, math.log10(condition), d, dtype=torch.float64)
        x = x * spread / (A @ x).std()
        if kind == "sinh":
            A = torch.cat([A, torch.ones(n, 1, dtype=torch.float64)], 1)
            x = torch.cat([x, x.new_tensor([0.7])])
        u = PHI[kind](A @ x)
        b = (u if form == "plain" else u / u.sum()) * (1 + noise * torch.randn(n, generator=g, dtype=torch.float64))
    return [t.to(torch.get_default_device(), dtype) for t in (A, b, x)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_minimizer_in_fifty_digits(kind, form, method):
    mpmath = pytest.importorskip("mpmath")
    A, b, _ = planted(kind, n=12, d=2, form=form, noise=0.02)
    solution = solve(Regression(A, b, kind=kind, form=form), method=method).raise_for_status()
    phi = {"exp": mpmath.exp, "cosh": mpmath.cosh, "sinh": mpmath.sinh}[kind]
    with mpmath.workdps(50):
        rows = [[mpmath.mpf(a) for a in row] for row in A.tolist()]
        aim = [mpmath.mpf(t) for t in b.tolist()]

        def loss(*x):
            u = [phi(sum(a * t for a, t in zip(row, x, strict=True))) for row in rows]
            total = sum(u)
            if form == "normalized":
                return sum((t / total - y) ** 2 for t, y in zip(u, aim, strict=True)) / 2
            unit = total if form == "rescaled" else mpmath.mpf(1)
            return sum((t - unit * y) ** 2 for t, y in zip(u, aim, strict=True)) / 2

        def gradient(*x):
            return [mpmath.diff(loss, x, tuple(int(i == j) for j in range(len(x)))) for i in range(len(x))]

        found = mpmath.findroot(gradient, [mpmath.mpf(t) for t in solution.x.tolist()], tol=1e-40, verify=False)
        error = max(abs(t - mpmath.mpf(x)) for t, x in zip(found, solution.x.tolist(), strict=True))
        assert error <= 1e-10 * max(abs(t) for t in found)


@pytest.mark.parametrize("method", METHODS)
def test_nist_danwood_to_its_certified_digits(method):
    y = torch.tensor([2.138, 3.421, 3.597, 4.340, 4.882, 5.660], dtype=torch.float64)
    t = torch.tensor([1.309, 1.471, 1.490, 1.565, 1.611, 1.680], dtype=torch.float64)
    A = torch.stack([torch.ones_like(t), t.log()], 1)
    solution = solve(Regression(A, y, form="plain"), method=method).raise_for_status()
    certified = torch.tensor([7.6886226176e-01, 3.8604055871e00, 4.3173084083e-03], dtype=torch.float64)
    found = torch.stack([solution.x[0].exp(), solution.x[1], 2 * solution.loss])
    torch.testing.assert_close(found, certified, rtol=2e-11, atol=0)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_planted_solution_is_found(kind, dtype, method):
    for form in FORMS:
        A, b, x = planted(kind, noise=0.0, form=form, dtype=dtype)
        solution = solve(Regression(A, b, kind=kind, form=form), method=method).raise_for_status()
        found = solution.x if kind != "cosh" else solution.x * torch.sign(solution.x @ x)
        tolerance = 1e-9 if dtype == torch.float64 else 2e-3
        if kind == "exp" or form == "plain":
            assert (found - x).abs().max() <= tolerance * x.abs().max()
        else:  # two-sided kinds without a scale may fit as well elsewhere
            assert solution.number("log_loss") < math.log(regression_loss(A, b, x, kind=kind, form=form).item() + 1e-9)
        assert solution.number("iterations") <= 25


@pytest.mark.usefixtures("on_device")
def test_a_half_precision_matrix():
    A, b, _ = planted("exp", noise=0.0, dtype=torch.float32)
    solution = solve(Regression(A.bfloat16(), b, form="normalized")).raise_for_status()
    exact = solve(Regression(A.bfloat16().float(), b, form="normalized"))
    torch.testing.assert_close(solution.x, exact.x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_going_on_from_a_state_is_as_if_it_had_not_stopped(form, method):
    A, b, _ = planted("exp", noise=0.3, form=form)
    problem = Regression(A, b, form=form)
    again = functools.partial(solve, method=method)
    whole = again(problem)
    seen = []
    first = again(problem, callback=lambda s: seen.append(s) or len(seen) == 2)
    assert first.status is Status.RUNNING and len(first.history) >= 1
    rest = again(problem, state=first.state)
    assert torch.equal(rest.x, whole.x) and rest.status is whole.status
    joined = torch.cat([first.history, rest.history])
    torch.testing.assert_close(joined[:, :-1], whole.history[:, :-1], rtol=0, atol=0, equal_nan=True)
    stepwise = again(problem, callback=lambda s: None)
    assert torch.equal(stepwise.x, whole.x) and torch.equal(stepwise.state[:4], whole.state[:4])
    limited = again(problem, max_iterations=1)
    assert limited.status is Status.MAX_ITERATIONS
    assert torch.equal(again(problem, state=limited.state).x, whole.x)


@pytest.mark.parametrize("form", FORMS)
def test_where_exp_fits_the_start_is_the_solution(form):
    A, b, x = planted("exp", noise=0.0, form=form)
    row_weight = torch.rand(len(b), generator=torch.Generator().manual_seed(1), dtype=b.dtype)
    for weight in (None, row_weight):
        start = solve(Regression(A, b, weight, form=form), max_iterations=0)
        assert start.status is Status.MAX_ITERATIONS and start.number("reads") == 2
        torch.testing.assert_close(start.x, x, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_methods_agree(form, kind):
    """From a given start, with weights, and where the start is so far off that L-BFGS needs Newton's steps."""
    A, b, x = planted(kind, form=form, noise=0.1, condition=30.0)
    g = torch.Generator().manual_seed(3)
    row_weight = torch.rand(len(b), generator=g, dtype=b.dtype, device="cpu").to(b.device)
    penalty_weight = (0.01 if form == "normalized" else 1.0) * b.abs()
    problem = Regression(A, b, row_weight, penalty_weight, kind=kind, form=form)
    for x0 in (0.9 * x, 1.5 * x):
        by_newton, by_memory = (solve(problem, x0, method=method) for method in METHODS)
        assert by_memory.status.converged or by_memory.status is by_newton.status
        if by_newton.number("certificate") > 0.25:
            continue  # a rescaled minimum need not be near, nor be one
        torch.testing.assert_close(by_memory.number("log_loss"), by_newton.number("log_loss"), rtol=1e-9, atol=1e-9)
    assert (by_newton.method, by_memory.method) == METHODS
    models = by_memory.history[:, by_memory.columns.index("model")]
    assert 2 in models and by_memory.number("grams") < by_newton.number("grams")


def test_auto_says_what_it_chose_and_why():
    A, b, _ = planted("exp", n=8192, d=64)
    solution = solve(Regression(A, b, form="normalized"), method="auto").raise_for_status()
    assert re.fullmatch(r"(newton|lbfgs|sampled): a Gram costs [0-9.e+]+ reads of A", solution.method)
    assert (solution.number("gram_ratio") > 1) == (solution.method.startswith("lbfgs"))
    going_on = solve(solution.problem, method="auto", state=solve(solution.problem, method="auto", max_iterations=1).state)
    torch.testing.assert_close(going_on.number("log_loss"), solution.number("log_loss"), rtol=1e-9, atol=1e-9)
    small = solve(Regression(A[:100], b[:100], form="normalized"), method="auto")
    assert small.method == "newton"  # too small to measure


def test_batches_are_their_problems():
    problems = [planted("exp", n=60, d=3, seed=seed) for seed in range(6)]
    A, b = (torch.stack([p[i] for p in problems]).unflatten(0, (2, 3)) for i in (0, 1))
    b[1, 2] = math.nan
    together = solve(Regression(A, b, form="normalized"))
    assert together.x.shape == (2, 3, 3) and len(together.statuses) == 6
    for i, (A_i, b_i) in enumerate(zip(A.flatten(0, 1), b.flatten(0, 1), strict=True)):
        alone = solve(Regression(A_i, b_i, form="normalized"))
        assert together.statuses[i] is alone.status
        assert torch.equal(together.x.flatten(0, 1)[i], alone.x)
    assert together.statuses[-1] is Status.NON_FINITE and together.status is Status.NON_FINITE
    with pytest.raises(SolveError, match=re.escape("problem 5 (of 1 in 6): failed: the loss is not finite")):
        together.raise_for_status()
    shared = solve(Regression(A[0, 0], b[0], form="normalized"))  # one matrix, three targets
    assert shared.x.shape == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_of_a_solution(form, kind):
    A, b, _ = planted(kind, n=9, d=2, form=form, noise=0.02)
    w, p = torch.rand(9, dtype=torch.float64) + 0.5, 1e-2 * torch.rand(9, dtype=torch.float64)
    start = solve(Regression(A, b, w, p, kind=kind, form=form)).raise_for_status().x

    def x_star(A, b, w, p):
        return solve(Regression(A, b, w, p, kind=kind, form=form), start, ftol=0.0).x

    tensors = [t.requires_grad_() for t in (A, b, w, p)]
    assert gradcheck(x_star, tensors, check_forward_ad=True, eps=1e-6, atol=1e-4, rtol=1e-3)
    with pytest.raises(NotImplementedError, match="second derivatives of a solution do not exist yet"):
        torch.autograd.grad(x_star(*tensors).sum(), A, create_graph=True)


def test_a_step_is_that_of_the_hessian():
    A, b, x = planted("exp", n=50, d=4)
    x = x + 0.1
    for curvature in ("gauss_newton", "clipped", "full"):
        _, g, H, _ = regression_evaluate(A, b, x, form="normalized", curvature=curvature)
        damped = H + 0.1 * H.diagonal().abs().diag()
        step = newton_step(A, b, x, form="normalized", curvature=curvature, damping=0.1)
        torch.testing.assert_close(step, -torch.linalg.solve(damped, g), rtol=1e-8, atol=1e-10)
    batched = newton_step(A.expand(2, -1, -1), b, torch.stack([x, 2 * x]), form="normalized")
    torch.testing.assert_close(batched[0], newton_step(A, b, x, form="normalized"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["exp", "cosh"])
def test_rank_deficient_matrices_are_solved_and_told(kind, method):
    A, b, _ = planted(kind, d=4)
    wide = torch.cat([A, A[:, :1], torch.zeros(len(A), 1, dtype=A.dtype)], 1)  # a duplicate column, and a zero one
    solution = solve(Regression(wide, b, kind=kind, form="normalized"), method=method).raise_for_status()
    best = solve(Regression(A, b, kind=kind, form="normalized"))
    assert solution.number("deficient") == 1 and best.number("deficient") == 0
    torch.testing.assert_close(solution.number("log_loss"), best.number("log_loss"), rtol=1e-8, atol=1e-8)
    assert solution.x.abs().max() < 100


def test_an_intercept_is_no_trouble_for_softmax_regression():
    """Adding a constant to the logits changes nothing: 1 is in the range of A."""
    A, b, _ = planted("exp")
    solution = solve(Regression(torch.cat([A, torch.ones(len(A), 1, dtype=A.dtype)], 1), b, form="normalized"))
    best = solve(Regression(A, b, form="normalized"))
    assert solution.status.converged
    torch.testing.assert_close(solution.number("log_loss"), best.number("log_loss"), rtol=1e-8, atol=1e-8)


def test_the_escape_of_the_rescaled_loss_is_told():
    """With an intercept the rescaled loss of exp falls by e^(-2 t) along it, to 0: there is no minimizer."""
    A, b, _ = planted("exp", noise=0.3)
    problem = Regression(torch.cat([A, torch.ones(len(A), 1, dtype=A.dtype)], 1), b)
    solution = solve(problem)
    assert solution.status is Status.DRIFT and not solution.status.converged
    with pytest.raises(SolveError, match="no rescaled minimizer here"):
        solution.raise_for_status()
    normalized = solve(Regression(problem.A, b, form="normalized"))
    torch.testing.assert_close(
        regression_loss(problem.A, b, solution.x, form="normalized").log(), normalized.number("log_loss"), rtol=1e-6, atol=1e-6
    )
    penalized = solve(Regression(problem.A, b, penalty_weight=torch.full_like(b, 3.0)))
    assert penalized.status.converged


def test_logits_that_run_off_to_zero_are_told():
    g = torch.Generator().manual_seed(1)
    A = torch.randn(300, 3, generator=g, dtype=torch.float64)
    b = A @ torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)  # linear: sinh fits it only as its logits vanish
    solution = solve(Regression(A, b / b.sum(), kind="sinh", form="normalized"))
    assert solution.status in (Status.VANISHING, Status.SINGULAR_SUM, Status.STALLED)


SPOILS = ["", "nan in A", "inf in A", "nan in b", "zero column", "duplicate rows", "zero b", "negative b", "nan in x0"]


@hypothesis.settings(max_examples=100)
@hypothesis.given(
    n=st.integers(0, 12), d=st.integers(0, 6), kind=st.sampled_from(KINDS), form=st.sampled_from(FORMS),
    spoil=st.sampled_from(SPOILS),
    dtype=st.sampled_from([torch.float32, torch.float64]), method=st.sampled_from([*METHODS, "sampled", "cg", "auto"]),
)  # fmt: skip
def test_any_data_gives_a_status(n, d, kind, form, spoil, dtype, method):
    g = torch.Generator().manual_seed(n * 7 + d)
    A, b = torch.randn(n, d, generator=g, dtype=dtype), torch.rand(n, generator=g, dtype=dtype)
    x0 = None
    if n and d:
        if "A" in spoil:
            A[0, 0] = math.nan if "nan" in spoil else math.inf
        elif spoil == "nan in b":
            b[-1] = math.nan
        elif spoil == "zero column":
            A[:, 0] = 0
        elif spoil == "duplicate rows":
            A = A[:1].expand(n, d)
        elif spoil == "zero b":
            b = torch.zeros_like(b)
        elif spoil == "negative b":
            b = -b
        elif spoil == "nan in x0":
            x0 = torch.full((d,), math.nan, dtype=dtype)
    solution = solve(Regression(A, b, kind=kind, form=form), x0, method=method, max_iterations=60)
    assert isinstance(solution.status, Status) and solution.number("iterations") <= 61
    if solution.status.converged and n and d:
        assert solution.x.isfinite().all()
    if "nan" in spoil and n and d:
        assert not solution.status.converged


def test_verbose_and_plot(capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    A, b, _ = planted("exp")
    solution = solve(Regression(A, b), verbose=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(solution.history) + 1 and lines[-1] == solution.status.value
    assert "log loss" in lines[0] and "(normalized" in lines[0] and "(rescaled" in lines[-2]
    axes = solution.plot()
    assert axes.get_xlabel() == "reads of A" and len(axes.lines) == 2
    pyplot.close("all")
    with pytest.raises(ValueError, match="expected a single problem, got a batch of 2"):
        solve(Regression(A.expand(2, -1, -1), b)).plot()


MESSAGES = [
    (lambda A, b: Regression(A, b[1:]), ValueError, "Regression: expected b of shape [*, 400] to match A's rows, got [399]"),
    (lambda A, b: Regression(A, b, kind="tan"), ValueError, "Regression: expected kind 'exp', 'cosh' or 'sinh', got 'tan'"),
    (lambda A, b: Regression(A.tolist(), b), TypeError, "Regression: expected A to be a torch.Tensor, got list"),
    (
        lambda A, b: solve(Regression(A, b), b),
        ValueError,
        "solve_regression: expected x of shape [*, 5] to match A's columns, got [400]",
    ),
    (
        lambda A, b: solve(Regression(A, b), method="bfgs"),
        ValueError,
        "solve_regression: expected method 'newton', 'lbfgs', 'sampled', 'cg' or 'auto', got 'bfgs'",
    ),
    (lambda A, b: solve(Regression(A, b), gtol=-1.0), ValueError, "solve_regression: expected a finite gtol >= 0, got -1"),
    (
        lambda A, b: solve(Regression(A, b), method="newton", state=b),
        ValueError,
        "solve_regression: expected state of shape [*, 450]",
    ),
]


@pytest.mark.parametrize("case", range(len(MESSAGES)))
def test_bad_input(case):
    call, error, message = MESSAGES[case]
    with pytest.raises(error, match=re.escape(message)):
        call(*planted("exp")[:2])


def test_script():
    A, b, _ = planted("exp")

    @torch.jit.script
    def fit(A: torch.Tensor, b: torch.Tensor):
        return torch.ops.torch_rescaled.solve_regression(A, b, form="normalized")[0]

    assert torch.equal(fit(A, b), solve(Regression(A, b, form="normalized")).x)
