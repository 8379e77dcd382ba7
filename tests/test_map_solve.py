# SPDX-License-Identifier: BSD-3-Clause
"""Fitted attention maps: planted truths, stationary points by an independent loss, every option, statuses, derivatives."""

import functools

import oracle_matrix_regression as oracle
import pytest
import torch
import torch.multiprocessing as multiprocessing
from map_problems import F64, PHI, attention, attention_loss, distance, planted, planted_attention, randn
from torch.autograd import gradcheck
from torch.func import grad, hessian, vmap

from torch_rescaled import AttentionRegression, MapSolution, MatrixRegression, SolveError, Status, solve


def by_memory(solution):
    return (solution.history[:, solution.columns.index("model")] == 2).any()


MAPS, LAYERS = ["newton", "cg", "lbfgs"], ["projection", "joint", "lbfgs", "lbfgs_joint"]


@pytest.mark.parametrize("method", MAPS)
@pytest.mark.parametrize("form", oracle.FORMS)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_planted_map_is_found(kind, form, method):
    A1, X, A2, B = planted(kind, form)
    x0 = None if kind != "sinh" or form == "plain" else X + 0.02 * randn(*X.shape, seed=9)
    solution = solve(MatrixRegression(A1, A2, B, kind=kind, form=form), x0, method=method).raise_for_status()
    assert distance(kind, solution.X, X) < 1e-9
    assert solution.number("products") == 0 if method == "newton" else by_memory(solution) == (method == "lbfgs")


@pytest.mark.parametrize("method", ["cg", "lbfgs"])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("form", oracle.FORMS)
@pytest.mark.parametrize("kind", ["exp", "cosh"])
def test_stationary_by_the_independent_loss(kind, form, rank, method):
    A1, X, A2, B = planted(kind, form, noise=0.05)
    options = {"kind": kind, "form": form, "regularization": 1e-6}
    x0 = X if form == "rescaled" else None
    solution = solve(MatrixRegression(A1, A2, B, rank=rank, **options), x0, method=method, ftol=0.0)
    if (kind, form, rank) == ("cosh", "rescaled", 2):
        assert solution.status is Status.VANISHING
        return  # too far from the target: the rescaled loss is least where cosh is constant
    if solution.status is Status.DRIFT:  # the rescaled loss may have no minimizer; its answer is the normalized form's
        options["form"] = "normalized"
    else:
        solution.raise_for_status()
    loss = lambda X: oracle.loss(A1, X, A2, B, **options)  # noqa: E731
    at = solution.X if rank is None else solution.factors
    whole = loss if rank is None else (lambda f: loss(f[0] @ f[1].mT))
    slopes = [grad(whole)(at)] if rank is None else list(grad(whole)(at))
    size = float(grad(loss)(torch.zeros_like(solution.X) + 0.1).norm())
    assert max(float(g.norm()) for g in slopes) < 1e-6 * size
    curvature = hessian(loss)(solution.X).reshape(X.numel(), X.numel())
    if rank is None:
        assert torch.linalg.eigvalsh(curvature).min() > 0
    else:
        assert solution.factors[0].shape == (4, 2) and solution.factors[1].shape == (5, 2)
        torch.testing.assert_close(solution.factors[0] @ solution.factors[1].mT, solution.X)
    torch.testing.assert_close(solution.loss, loss(solution.X), rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", MAPS)
def test_masks_and_samples(method):
    mask = torch.ones(3, 1, 50, dtype=torch.bool)
    mask[1, :, 30:], mask[2, :, 44:] = False, False
    A1, X, A2, B = planted(samples=(3,), mask=mask, causal=True, n1=50)
    noise = torch.where(mask, 0.0, 7.0)  # what a mask hides does not matter
    problem = MatrixRegression(A1, A2, B + noise, attn_mask=mask, is_causal=True, form="normalized", sample_dims=1)
    solution = solve(problem, method=method).raise_for_status()
    assert solution.X.shape == X.shape and distance("exp", solution.X, X) < 1e-9


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("kind", ["exp", "cosh"])
def test_a_teacher_in_the_place_of_a_target(kind, rank):
    A1, X, A2, _ = planted(batch=(2,), samples=(3,))
    mask = (torch.arange(50) < 40).expand(3, 1, 50)
    teacher = {"teacher_query": A1 @ X[:, None], "teacher_key": A2, "teacher_kind": kind}
    z = torch.where(mask, A1 @ X[:, None] @ A2.mT, -torch.inf if kind == "exp" else 0.0)
    u = PHI[kind](z) * mask
    make = functools.partial(MatrixRegression, A1, A2, attn_mask=mask, kind=kind, form="normalized", sample_dims=1, rank=rank)
    x0 = None if kind == "exp" else X + 0.02
    ours, dense = solve(make(**teacher), x0).raise_for_status(), solve(make(u / u.sum(-1, keepdim=True)), x0)
    torch.testing.assert_close(ours.X, dense.X, rtol=1e-5, atol=1e-6)
    if rank is None:
        assert float((ours.X - X).norm()) < 1e-8


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("method", MAPS)
def test_components_in_the_place_of_a_target(method):
    A1, X, A2, B = planted(batch=(2,), noise=0.02)
    kept = B.flatten(1).topk(1500).indices  # as many for each
    B = torch.zeros_like(B).flatten(1).scatter(1, kept, B.flatten(1).gather(1, kept)).view_as(B)
    parts = [b.to_sparse_csr() for b in B]
    components = {n: torch.stack([getattr(p, n)() for p in parts]) for n in ("crow_indices", "col_indices", "values")}
    ours = solve(MatrixRegression(A1, A2, form="normalized", **components), X, method=method).raise_for_status()
    torch.testing.assert_close(ours.X, solve(MatrixRegression(A1, A2, B, form="normalized"), X).X, rtol=1e-6, atol=1e-7)
    a = A1.clone().requires_grad_()
    solve(MatrixRegression(a, A2, form="normalized", **components), X, ftol=0.0).X.sum().backward()
    b = A1.clone().requires_grad_()
    solve(MatrixRegression(b, A2, B, form="normalized"), X, ftol=0.0).X.sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="one target, B, or teacher_query"):
        solve(MatrixRegression(A1, A2))


def test_a_rank_does_not_start_at_the_saddle():
    """Logarithms of this target say nothing about X: the start is X = 0, where factors have no gradient."""
    A1, A2 = randn(300, 12), randn(40, 12, seed=1)
    B = torch.softmax(3 * randn(300, 40, seed=2), -1)
    for x0 in (None, A1.new_zeros(12, 12)):
        solution = solve(MatrixRegression(A1, A2, B, form="normalized", rank=2), x0).raise_for_status()
        assert solution.number("evaluations") > 2
        assert solution.loss < oracle.loss(A1, A1.new_zeros(12, 12), A2, B, kind="exp", form="normalized")


@pytest.mark.parametrize("method", ["cg", "lbfgs"])
def test_a_batch_is_its_problems(method):
    A1, X, A2, B = planted(batch=(2, 3), samples=(2,), noise=0.02)
    make = functools.partial(MatrixRegression, form="normalized", sample_dims=1, rank=3)
    whole = solve(make(A1, A2, B), method=method)
    assert whole.X.shape == X.shape and len(whole.statuses) == 6 and whole.number("iterations").shape == (2, 3)
    alone = solve(make(A1[1, 2], A2[1, 2], B[1, 2]), method=method)
    assert torch.equal(whole.X[1, 2], alone.X)
    shared = solve(make(A1[0, 0], A2[0, 0], B), method=method)  # A1 and A2 broadcast over the problems
    assert torch.equal(shared.X[0, 0], whole.X[0, 0])


@pytest.mark.parametrize(
    ("problem", "method"),
    [(p, m) for p in ("matrix", "rank") for m in ("auto", "cg", "lbfgs")]
    + [("attention", m) for m in ("projection", "lbfgs", "lbfgs_joint")],
)
def test_resumed_is_uninterrupted(problem, method):
    if problem == "attention":
        A1, X, A2, A3, _, B = planted_attention(noise=0.1)
        problem, x0 = AttentionRegression(A1, A2, A3, B), X + 0.2 * randn(*X.shape, seed=8)
    else:
        A1, X, A2, B = planted(form="rescaled", noise=0.02)
        problem, x0 = MatrixRegression(A1, A2, B, rank=3 if problem == "rank" else None), None
    run = functools.partial(solve, problem, x0, method=method, ftol=0.0)
    once = run()
    seen = []
    steps = run(callback=lambda s: seen.append(s.number("iterations").item()))
    assert torch.equal(once.X, steps.X) and torch.equal(once.history, steps.history)
    assert len(seen) == once.number("iterations") > 2
    for stop in (2, 27):  # L-BFGS renews its metric in between
        part = run(max_iterations=stop)
        if part.number("iterations") < once.number("iterations"):
            assert part.status is Status.MAX_ITERATIONS
        rest = run(state=part.state)
        assert torch.equal(rest.X, once.X) and rest.statuses == once.statuses


@pytest.mark.parametrize("method", LAYERS)
@pytest.mark.parametrize(("kind", "form"), [(k, "normalized") for k in PHI] + [(k, "rescaled") for k in oracle.KINDS])
def test_planted_attention_is_found(kind, form, method):
    A1, X, A2, A3, Y, B = planted_attention(kind)
    problem = AttentionRegression(A1, A2, A3, B, kind=kind, form=form)
    solution = solve(problem, X + 0.01 * randn(*X.shape, seed=8), method=method).raise_for_status()
    assert distance(kind, solution.X, X) < 1e-6
    assert solution.Y is not None
    torch.testing.assert_close(solution.Y, Y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", LAYERS)
@pytest.mark.parametrize("kind", ["exp", "cosh", "signed"])
def test_attention_is_stationary_by_the_independent_loss(kind, method):
    A1, X, A2, A3, Y, B = planted_attention(kind, noise=0.1)
    solution = solve(AttentionRegression(A1, A2, A3, B, kind=kind), X, method=method, ftol=0.0).raise_for_status()
    loss = functools.partial(attention_loss, kind=kind)
    slopes = grad(lambda x, y: loss(A1, x, A2, A3, y, B), (0, 1))(solution.X, solution.Y)
    size = grad(lambda x, y: loss(A1, x, A2, A3, y, B), (0, 1))(X + 0.1, Y)
    assert all(float(g.norm()) < 1e-6 * float(s.norm()) for g, s in zip(slopes, size, strict=True))
    torch.testing.assert_close(solution.loss, loss(A1, solution.X, A2, A3, solution.Y, B), rtol=1e-9, atol=0)


def test_all_methods_and_a_start_from_the_target():
    A1, X, A2, A3, _, B = planted_attention(noise=0.1)
    first, *found = [solve(AttentionRegression(A1, A2, A3, B), X, method=m).raise_for_status() for m in LAYERS]
    for other in found:
        torch.testing.assert_close(first.X, other.X, rtol=1e-5, atol=1e-5)
    own = solve(AttentionRegression(A1, A2, A3, B))
    assert own.status.converged and own.loss < attention_loss(A1, torch.zeros_like(X), A2, A3, torch.zeros(4, 3, dtype=F64), B)


@pytest.mark.parametrize("method", ["projection", "auto"])
@pytest.mark.parametrize("kind", ["exp", "cosh", "sinh", "signed"])
@pytest.mark.parametrize("causal", [False, True])
def test_without_the_rows_jacobians(kind, causal, method):
    """More outputs than Jacobians pay for: products by the core, a metric from some rows."""
    A1, X, A2, A3, _, _ = planted_attention(kind, n=600)
    Y = randn(4, 130, seed=6)
    if causal:
        A2, A3 = A1, A1.roll(1, -1)
    z = A1 @ X @ A2.mT
    u, c = PHI[kind](z), (torch.cosh(z) if kind == "signed" else PHI[kind](z))
    if causal:
        u, c = u.tril(), c.tril()
    B = u / c.sum(-1, keepdim=True) @ A3 @ Y
    problem = AttentionRegression(A1, A2, A3, B, kind=kind, is_causal=causal)
    solution = solve(problem, X + 0.01 * randn(*X.shape, seed=8), method=method).raise_for_status()
    assert distance(kind, solution.X, X) < 1e-6
    assert by_memory(solution) == (method == "auto")


@pytest.mark.parametrize("method", ["projection", "lbfgs"])
def test_attention_masks_samples_and_rank(method):
    A = randn(3, 40, 5)
    X, Y = randn(5, 2, seed=1) @ randn(2, 5, seed=2) / 5, randn(5, 3, seed=3)
    mask = torch.ones(3, 1, 40, dtype=torch.bool)
    mask[1, :, 25:] = False
    mask[2] = False  # a sample without keys has no say
    output, total = attention(A, X, A, A, Y, mask=mask)
    B = torch.where(mask.any(-1, keepdim=True), output / total, 3.0)
    problem = AttentionRegression(A, A, A, B, attn_mask=mask, sample_dims=1, rank=2)
    solution = solve(problem, X + 0.01 * randn(5, 5, seed=4), method=method).raise_for_status()
    assert distance("exp", solution.X, X) < 1e-6 and solution.loss < 1e-12
    assert solution.factors is not None and solution.factors[0].shape == (5, 2)


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
@pytest.mark.parametrize("form", ["normalized", "rescaled"])
def test_float32_and_half(form, method):
    A1, X, A2, B = planted(form=form, noise=0.01)
    exact = solve(MatrixRegression(A1, A2, B, form=form), X)
    single = solve(MatrixRegression(A1.float(), A2.float(), B.float(), form=form), X.float(), method=method).raise_for_status()
    assert single.X.dtype == torch.float32
    torch.testing.assert_close(single.X.double(), exact.X, rtol=2e-4, atol=2e-4)
    half = solve(MatrixRegression(A1.bfloat16(), A2.bfloat16(), B.float(), form=form), X.float(), method=method)
    assert half.X.dtype == torch.float32 and half.status.converged


@pytest.mark.parametrize("method", MAPS)
def test_traps_are_told(method):
    A1, X, A2, B = planted("cosh")
    stuck = solve(MatrixRegression(A1, A2, B, kind="cosh", form="normalized"), torch.zeros_like(X), method=method)
    assert stuck.status is Status.VANISHING
    with pytest.raises(SolveError, match="run off to 0"):
        stuck.raise_for_status()
    spoiled = B.clone()
    spoiled[3, 4] = torch.nan
    assert solve(MatrixRegression(A1, A2, spoiled, form="normalized"), method=method).status is Status.NON_FINITE
    # Nothing near this target: with an intercept the rescaled loss goes to 0 with the sum of u.
    A1, A2 = randn(40, 3), torch.cat([randn(30, 3, seed=1), torch.ones(30, 1, dtype=F64)], 1)
    A1 = torch.cat([A1, torch.ones(40, 1, dtype=F64)], 1)
    assert solve(MatrixRegression(A1, A2, randn(40, 30, seed=2).abs(), form="rescaled"), method=method).status is Status.DRIFT
    empty = solve(MatrixRegression(A1[:0], A2, randn(0, 30), form="normalized"), method=method)
    assert empty.status.converged and empty.X.shape == (4, 4)


def test_derivative_of_a_solution():
    A1, X, A2, B = planted(n1=20, n2=15, d1=2, d2=2, batch=(2,), noise=0.001)
    leaves = [t.clone().requires_grad_() for t in (A1, A2, B)]
    for rank, form in ((None, "normalized"), (None, "rescaled"), (1, "normalized")):

        def f(A1, A2, B, rank=rank, form=form):
            return solve(MatrixRegression(A1, A2, B, rank=rank, form=form, regularization=1e-6), X, ftol=0.0).X

        assert gradcheck(f, leaves, eps=1e-4, atol=3e-4, rtol=1e-2, fast_mode=True, check_forward_ad=True)
    with pytest.raises(NotImplementedError, match="one derivative of the solution"):
        torch.autograd.grad(f(*leaves).sum(), leaves[0], create_graph=True)


def test_no_derivative_where_there_is_no_minimum():
    """The first problem of the batch is stuck at a saddle point, where the theorem says nothing; the second is solved."""
    A1, X, A2, B = planted("cosh", batch=(2,))
    X0 = torch.stack([torch.zeros_like(X[0]), X[1]])
    leaf = A1.clone().requires_grad_()
    solution = solve(MatrixRegression(leaf, A2, B, kind="cosh", form="normalized"), X0, ftol=0.0)
    assert [status.converged for status in solution.statuses] == [False, True]
    solution.X.sum().backward()
    assert leaf.grad[0].isnan().all() and leaf.grad[1].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "form", "rank"), [("exp", "normalized", None), ("signed", "normalized", None), ("exp", "rescaled", None)]
)
def test_derivative_of_an_attention_solution(kind, form, rank):
    A1, X, A2, A3, _, B = planted_attention(kind, n=30, d=2, dv=2, noise=0.002)
    leaves = [t.clone().requires_grad_() for t in (A1, A2, A3, B)]

    def f(A1, A2, A3, B):
        s = solve(AttentionRegression(A1, A2, A3, B, kind=kind, form=form, rank=rank, regularization=1e-6), X, ftol=0.0)
        return s.X, s.Y

    assert gradcheck(f, leaves, eps=1e-4, atol=3e-4, rtol=1e-2, fast_mode=True, check_forward_ad=True)


def test_what_auto_takes_and_what_ends_it():
    A1, X, A2, B = planted(noise=0.02)
    A3, out = randn(50, 4), randn(60, 3)
    few, plain, rank = (MatrixRegression(A1, A2, B, **o) for o in ({}, {"form": "plain", "rank": 2}, {"rank": 2}))
    for problem, expected in ((few, False), (plain, False), (rank, True), (AttentionRegression(A1, A2, A3, out), False)):
        assert by_memory(solve(problem, X, max_iterations=3)) == expected
    assert by_memory(solve(AttentionRegression(A1, A2[:19], A3[:19], out), X, max_iterations=3))  # few keys
    column = MapSolution.columns.index("model")
    exact = solve(few, X, method="lbfgs", ftol=0.0)
    assert exact.history[0, column] == 2 and exact.history[-1, column] != 2
    torch.testing.assert_close(exact.X, solve(few, X, ftol=0.0).X, rtol=1e-10, atol=1e-10)


def test_vmap():
    A1, X, A2, B = planted(batch=(3,))
    op = torch.ops.torch_rescaled.solve_matrix_regression

    def f(A1, B, x0):
        return op(A1, A2[0], B, X0=x0, form="normalized")[0]

    B = torch.softmax(A1 @ X @ A2[0].mT, -1)
    torch.testing.assert_close(vmap(f)(A1, B, X + 0.1), X)


PARTS = [("normalized", None, "newton"), *((f, r, m) for f, r in (("normalized", 2), ("rescaled", None)) for m in ("cg", "lbfgs"))]


def _part(rank, address, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    group = torch.distributed.group.WORLD
    rows = slice(0, 37) if rank == 0 else slice(37, None)  # unequal parts
    A1, X, A2, B = planted(noise=0.02)
    found = [solve(MatrixRegression(A1[rows], A2, B[rows], form=form, rank=r), method=m, group=group).X for form, r, m in PARTS]
    A1, X, A2, A3, _, B = planted_attention(noise=0.05)
    layers = [solve(AttentionRegression(A1[rows], A2, A3, B[rows]), X, method=m, group=group) for m in LAYERS]
    torch.save([*found, *(s.X for s in layers), *(s.Y for s in layers)], f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_rows_over_processes(tmp_path):
    multiprocessing.spawn(_part, (f"file://{tmp_path}/rendezvous", str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for a, b in zip(*parts, strict=True):
        assert torch.equal(a, b)
    A1, X, A2, B = planted(noise=0.02)
    for found, (form, r, _) in zip(parts[0], PARTS, strict=False):
        alone = solve(MatrixRegression(A1, A2, B, form=form, rank=r)).raise_for_status()
        torch.testing.assert_close(found, alone.X, rtol=1e-5, atol=1e-6)
    A1, X, A2, A3, _, B = planted_attention(noise=0.05)
    for found, method in zip(parts[0][len(PARTS) :], LAYERS, strict=False):
        torch.testing.assert_close(found, solve(AttentionRegression(A1, A2, A3, B), X, method=method).X, rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="a group has no derivative yet"):
        torch.ops.torch_rescaled.solve_matrix_regression(A1.requires_grad_(), A2, randn(60, 50), group="0")


def test_verbose_and_plot(capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    A1, _, A2, B = planted()
    solution = solve(MatrixRegression(A1, A2, B, form="normalized"), method="cg", verbose=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == solution.number("iterations") + 1 and "products" in lines[0] and "converged" in lines[-1]
    assert solution.plot().get_xlabel() == "products"
    assert solve(solution.problem, method="lbfgs").plot().get_xlabel() == "iteration"
    pyplot.close("all")


M, A = "solve_matrix_regression: ", "solve_attention_regression: "
REFUSED = [
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B[:, 1:])), ValueError, M + "expected B of shape"),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B, rank=9)), ValueError, M + "expected a rank from 1 to 4, got 9"),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B, sample_dims=1)), ValueError, M + "expected sample_dims from 0"),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B), method="joint"), ValueError, M + "expected method 'auto', 'cg', 'n"),
    (
        lambda a, b, c, B, y: solve(MatrixRegression(a, b, B), method="lbfgs", state=a.new_zeros(47)),
        ValueError,
        "expected state of",
    ),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B, rank=2), method="newton"), ValueError, "with a rank, got 'newton'"),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B), cg_iterations=0), ValueError, "cg_iterations >= 1, got 0"),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B), ftol=-1.0), ValueError, "a finite ftol >= 0, got -1"),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B, regularization=-1)), ValueError, "a finite regularization >= 0, got -1"),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B), state=a.new_zeros(3)), ValueError, "expected state of shape"),
    (lambda a, b, c, B, y: solve(MatrixRegression(a, b, B.float())), TypeError, M + "expected B of dtype"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b, c, y[1:])), ValueError, A + "expected B with as many rows as A1"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b, c[1:], y)), ValueError, A + "expected A3 with as many rows as A2"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b, c, y), c), ValueError, A + "expected X0 of shape"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b, c, y, kind="tanh")), ValueError, A + "expected kind 'exp', 'cosh'"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b, c, y, form="plain")), ValueError, A + "expected form 'normalized'"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b, c, y, kind="signed", form="rescaled")), ValueError, "got 'rescaled'"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b, c, y), method="cg"), ValueError, A + "expected method 'auto', 'proj"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b.float(), c, y)), TypeError, A + "expected A2 of A1's dtype"),
    (lambda a, b, c, B, y: solve(AttentionRegression(a, b, c, y, attn_mask=B)), TypeError, "attn_mask of dtype Bool"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_refused(call, error, words):
    A1, _, A2, A3, _, out = planted_attention()
    with pytest.raises(error) as caught:
        call(A1, A2, A3, randn(60, 50), out)
    assert words in str(caught.value)
