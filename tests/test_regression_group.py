# SPDX-License-Identifier: BSD-3-Clause
"""Regressions whose rows are shared out over processes: the same solution as in one, one collective an evaluation, no hangs."""

import datetime
import os
import time

import pytest
import torch
import torch.multiprocessing as multiprocessing
from oracle_regression import FORMS, KINDS
from torch.profiler import profile

from torch_rescaled import Regression, Status, solve

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

OPS = torch.ops.torch_rescaled
PHI = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}
CUTS = [0, 37, 37, 400]  # uneven, and one process without rows
MANY = 20000  # more than a table of quantiles has
CASES = [(kind, form, method) for kind in KINDS for form in FORMS for method in ("newton", "lbfgs")]
TIMEOUT = 6.0


def data(kind="exp", form="normalized", n=400, d=5, seed=0, batch=(), noise=1e-3):
    """A, b, row_weight and penalty_weight of a well-conditioned problem, and its planted x."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    A, x = randn(*batch, n, d), 0.4 * randn(*batch, d)
    if kind == "sinh":  # away from the pole
        A[..., -1], x[..., -1] = 1.0, 0.7
    u = PHI[kind]((A @ x.unsqueeze(-1)).squeeze(-1))
    b = (u if form == "plain" else u / u.sum(-1, keepdim=True)) * (1 + noise * randn(*batch, n))
    weights = 0.5 + torch.rand(2, *batch, n, generator=g, dtype=torch.float64)
    size = b.square().mean(-1, keepdim=True).sqrt()
    return A, b, weights[0], 0.001 * size * weights[1], x


def problem(kind, form, rows=slice(None), dtype=torch.float64, weighted=True, **options):
    A, b, row_weight, penalty_weight, _ = data(kind, form, **options)
    weights = [t[..., rows].to(dtype) if weighted else None for t in (row_weight, penalty_weight)]
    return Regression(A[..., rows, :].to(dtype), b[..., rows].to(dtype), *weights, kind=kind, form=form)


def joined(rank, address, size):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=TIMEOUT)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size, timeout=timeout)
    return torch.distributed.group.WORLD


def numbers(solution):
    """All of a summary that is the same in every run, and on every process."""
    return torch.stack([solution.number(name) for name in solution.names if not name.startswith("seconds")])


def collectives(run):
    with profile() as seen:
        run()
    events = {e.key: e.count for e in seen.key_averages()}
    return [events.get(f"_c10d_functional::{name}", 0) for name in ("all_gather_into_tensor", "all_reduce")]


def message(run):
    try:
        run()
    except ValueError as error:
        return str(error)
    return "no error"


def shard(rank, address, folder):
    group, rows = joined(rank, address, 3), slice(CUTS[rank], CUTS[rank + 1])
    out = {}
    for case in CASES:
        kind, form, method = case
        found = solve(problem(kind, form, rows), method=method, ftol=0.0, group=group)
        out[case] = found.x, numbers(found)
    exp = problem("exp", "rescaled", rows)
    for name, method, x0 in (("again", "newton", None), ("auto", "auto", None), ("x0", "lbfgs", data()[-1])):
        found = solve(exp, x0, method=method, ftol=0.0, group=group)
        out[name] = found.x, numbers(found)
    for method in ("newton", "lbfgs"):
        begun = solve(exp, method=method, ftol=0.0, max_iterations=2, group=group)
        rest = solve(exp, method=method, ftol=0.0, group=group, state=begun.state)
        out["resumed", method] = rest.x, numbers(rest)
        out["state", method] = begun.state, numbers(begun)
    part = slice(*(MANY * cut // CUTS[-1] for cut in CUTS[rank : rank + 2]))
    for kind in ("cosh", "sinh"):
        found = solve(problem(kind, "normalized", part, n=MANY), ftol=0.0, group=group)
        out["many rows", kind] = found.x, numbers(found)
    found = solve(problem("exp", "normalized", rows, weighted=False, noise=0.0), group=group)
    out["exact"] = found.x, numbers(found)
    for method in ("newton", "lbfgs"):
        sparse = Regression(exp.A.to_sparse_csr(), exp.b, exp.row_weight, exp.penalty_weight)
        found = solve(sparse, method=method, ftol=0.0, group=group)
        out["sparse", method] = found.x, numbers(found)
        out["sampled", method] = message(lambda: solve(exp, method="sampled", group=group))
    found = solve(problem("exp", "normalized", rows, batch=(3,)), ftol=0.0, group=group)
    out["batch"] = found.x, numbers(found)
    for dtype in (torch.float32, torch.bfloat16):
        half = problem("exp", "normalized", rows, torch.float32, weighted=False)
        A = half.A.to(dtype)
        out[str(dtype)] = solve(Regression(A, half.b, form="normalized"), group=group).x, torch.zeros(())
    none = solve(problem("cosh", "plain", slice(0)), group=group)
    out["no rows at all"] = none.x, numbers(none)
    for method, pass_x0 in (("newton", False), ("lbfgs", True)):
        x0 = data()[-1] + 0.01 if pass_x0 else None
        counts = [collectives(lambda m=m: solve(exp, x0, method=method, ftol=0.0, max_iterations=m, group=group)) for m in range(8)]  # noqa: B023
        lines = solve(exp, x0, method=method, ftol=0.0, max_iterations=7, group=group)
        out["collectives", method] = torch.tensor(counts), lines.history
    wide = problem("exp", "normalized", slice(2 * CUTS[rank], 2 * CUTS[rank + 1]), n=800, d=300)
    torch.set_num_threads(1 + rank % 2)  # LAPACK rounds otherwise with each number of threads
    for method in ("newton", "lbfgs"):
        found = solve(wide, method=method, max_iterations=1, group=group)
        out["threads", method] = found.x, numbers(found)
    torch.set_num_threads(1)
    odd = Regression(exp.A[:, :4], exp.b) if rank == 1 else exp
    out["messages"] = [
        message(lambda: solve(odd, group=group)),
        message(lambda: solve(exp, gtol=0.1 * rank, group=group)),
        message(lambda: solve(exp, torch.full((5,), 1.0 + rank, dtype=torch.float64), group=group)),
        message(lambda: solve(problem("cosh" if rank == 2 else "exp", "plain", rows), group=group)),
    ]
    torch.save(out, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def processes(target, folder, *arguments):
    """Three, started; forked from a process that has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch_rescaled", "torch.distributed._functional_collectives", "torch.profiler"])
    address = f"file://{folder}/rendezvous"
    found = [context.Process(target=target, args=(rank, address, str(folder), *arguments), daemon=True) for rank in range(3)]
    for process in found:
        process.start()
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    for process in processes(shard, folder):
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


def assert_same_solution(kind, found, expected):
    """To 1e-12; cosh does not tell x from -x."""
    if kind == "cosh" and torch.dot(found, expected) < 0:
        found = -found
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def same(a, b):
    return torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_solution_is_that_of_one_process(case, shards):
    kind, form, method = case
    alone = solve(problem(kind, form), method=method, ftol=0.0).raise_for_status()
    for part in shards:
        x, summary = part[case]
        assert same(x, shards[0][case][0]) and same(summary, shards[0][case][1])
        assert_same_solution(kind, x, alone.x)
    names = [name for name in alone.names if not name.startswith("seconds")]
    found = dict(zip(names, shards[0][case][1].tolist(), strict=True))
    assert found["status"] in (float(list(Status).index(s)) for s in Status if s.converged)
    assert found["log_loss"] == pytest.approx(alone.number("log_loss").item(), rel=1e-11)
    assert found["effective_rows"] == pytest.approx(alone.number("effective_rows").item(), rel=1e-11)


def test_runs_are_the_same_bit_for_bit(shards):
    for part in shards:
        assert all(same(a, b) for a, b in zip(part["again"], part["exp", "rescaled", "newton"], strict=True))
        for method in ("newton", "lbfgs"):
            whole = part["exp", "rescaled", method]
            assert all(same(a, b) for a, b in zip(part["resumed", method], whole, strict=True))


def test_threads_round_alike(shards):
    for method in ("newton", "lbfgs"):
        assert all(same(part["threads", method][0], shards[0]["threads", method][0]) for part in shards)


def test_states_are_of_the_rows_here(shards):
    for method in ("newton", "lbfgs"):
        sizes = [part["state", method][0].numel() for part in shards]
        assert [size - sizes[1] for size in sizes] == [37, 0, 363]


def test_other_starts_and_batches(shards):
    alone = solve(problem("exp", "rescaled"), ftol=0.0).x
    for part in shards:
        for name in ("auto", "x0"):
            torch.testing.assert_close(part[name][0], alone, rtol=1e-12, atol=1e-13)
        batch = solve(problem("exp", "normalized", batch=(3,)), ftol=0.0).x
        torch.testing.assert_close(part["batch"][0], batch, rtol=1e-12, atol=1e-13)
        assert part["no rows at all"][0].shape == (5,)
    exact = problem("exp", "normalized", dtype=torch.float32, weighted=False)
    for dtype in (torch.float32, torch.bfloat16):
        alone = solve(Regression(exact.A.to(dtype), exact.b, form="normalized")).x
        torch.testing.assert_close(shards[0][str(dtype)][0], alone, rtol=1e-5, atol=1e-5)


def test_a_sparse_matrix_is_shared_out_alike(shards):
    alone = solve(problem("exp", "rescaled"), ftol=0.0).x
    for part in shards:
        for method in ("newton", "lbfgs"):
            assert same(part["sparse", method][0], shards[0]["sparse", method][0])
            assert_same_solution("exp", part["sparse", method][0], alone)
            assert "'newton', 'lbfgs' or 'auto' with a group, got 'sampled'" in part["sampled", method]


def test_starts_by_merged_quantiles(shards):
    for kind in ("cosh", "sinh"):
        alone = solve(problem(kind, "normalized", n=MANY), ftol=0.0).raise_for_status()
        assert_same_solution(kind, shards[0]["many rows", kind][0], alone.x)


def test_nothing_cancels_where_the_fit_is_exact(shards):
    x, summary = shards[0]["exact"]
    torch.testing.assert_close(x, data("exp", "normalized", noise=0.0)[-1], rtol=1e-12, atol=1e-13)
    alone = solve(problem("exp", "normalized", weighted=False, noise=0.0))
    log_loss = summary[alone.names.index("log_loss")]
    assert log_loss < -60 and abs(log_loss - alone.number("log_loss")) < 5  # of rounding alone


def test_an_evaluation_is_one_collective(shards):
    """An L-BFGS iteration gathers once; a whole step of Newton's gathers the models and its end, and sums the Hessian once."""
    counts, history = shards[0]["collectives", "lbfgs"]
    by_memory = (history[:, 6] == 2).nonzero().flatten().tolist()
    steps = counts.diff(dim=0)
    assert by_memory and all(steps[i].tolist() == [1, 0] for i in by_memory)
    counts, history = shards[0]["collectives", "newton"]
    steps = counts.diff(dim=0)
    whole = [i for i in range(len(history) - 1) if history[i, 4] == 1 and history[i, 7] == history[i + 1, 7]]
    assert whole and all(steps[i].tolist() == [2, 1] for i in whole)
    for part in shards:
        assert all(torch.equal(part["collectives", m][0], shards[0]["collectives", m][0]) for m in ("newton", "lbfgs"))


def test_processes_that_disagree_are_told(shards):
    for part in shards:
        for text, name in zip(part["messages"], ("d", "gtol", "x0", "kind"), strict=True):
            assert f"solve_regression: expected the same {name} on every process of the group" in text


def test_a_group_has_no_derivatives():
    A, b, *_ = data()
    with pytest.raises(NotImplementedError, match="a group has no derivative yet"):
        OPS.solve_regression(A.requires_grad_(), b, group="0")


def by_formulas(op, *arguments):
    """What devices without kernels for it get, on the CPU: the implementation that serves for all that have none."""
    return op.default.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.Meta), *arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_parts_by_formulas_are_those_of_the_kernels(kind, form):
    A, b, row_weight, penalty_weight, x = data(kind, form, n=60)  # one block of rows: one center
    for penalty in (penalty_weight, None):
        arguments = (A, b, x + 0.1, row_weight, penalty, kind, form)
        part, plain = OPS._regression_part(*arguments), by_formulas(OPS._regression_part, *arguments)
        assert part.shape == (11 + 4 * 5,)
        vectors, expected = part[11:].view(4, 5), plain[11:].view(4, 5)
        if form == "plain":  # no use for the two in the middle
            expected = expected * torch.tensor([1.0, 0, 0, 1]).unsqueeze(1)
        torch.testing.assert_close(vectors, expected, rtol=1e-11, atol=1e-14)
        steps = torch.tensor([0.0, 0.5], dtype=torch.float64)
        resident = (A @ (x + 0.1), A @ x, steps, b, row_weight, penalty, kind, form)
        trials, expected = OPS._regression_part_statistics(*resident), by_formulas(OPS._regression_part_statistics, *resident)
        torch.testing.assert_close(trials, expected, rtol=1e-11, atol=1e-14)
        for numbers in (part[:11], plain[:11]):
            torch.testing.assert_close(numbers, trials[0], rtol=1e-11, atol=1e-14)
    numbers = OPS._regression_statistics(*resident)[0]
    rows = OPS._regression_rows(resident[0], numbers, b, row_weight, penalty_weight, kind, form)
    for curvature in ("gauss_newton", "clipped", "full"):
        found = OPS._regression_part_gram(A, rows, curvature)
        for a, b_ in zip(found, by_formulas(OPS._regression_part_gram, A, rows, curvature), strict=True):
            torch.testing.assert_close(a, b_, rtol=1e-11, atol=1e-14)
        (gradient, p, q, noise), gram = found
        hessian = gram - torch.outer(p, q) - torch.outer(q, p) + numbers[7] * torch.outer(p, p)
        for a, b_ in zip((gradient, hessian, noise), OPS._regression_curvature(A, rows, numbers, curvature), strict=True):
            torch.testing.assert_close(a, b_, rtol=1e-11, atol=1e-14)


def interrupted(rank, address, folder, how):
    group, begin = joined(rank, address, 3), time.monotonic()

    def leave(_):
        if rank == 2 and how == "dies":
            os._exit(1)
        if rank == 2:
            time.sleep(4 * TIMEOUT)

    try:
        solve(problem("cosh", "normalized", slice(CUTS[rank], CUTS[rank + 1])), group=group, callback=leave)
        told = "no error"
    except RuntimeError as error:
        told = str(error)
    torch.save((told, time.monotonic() - begin), f"{folder}/{rank}.pt")
    os._exit(0)  # not by way of a barrier with the missing one


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_missing_process_is_an_error_not_a_hang(how, tmp_path):
    running = processes(interrupted, tmp_path, how)
    for process in running[:2]:
        process.join(60)
    running[2].kill()
    for rank, process in enumerate(running[:2]):
        assert process.exitcode == 0
        told, seconds = torch.load(tmp_path / f"{rank}.pt")
        assert told != "no error" and seconds < 3 * TIMEOUT
