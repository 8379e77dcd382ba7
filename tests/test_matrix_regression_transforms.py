# SPDX-License-Identifier: BSD-3-Clause
"""gradcheck, torch.func, compile, script, modes, threads, memory, empty and bad input, of the matrix regression operators."""

import re

import oracle_matrix_regression as oracle
import pytest
import torch
from oracle_matrix_regression import FORMS, KINDS
from test_attention_memory import peak_bytes
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from torch_rescaled import matrix_regression_evaluate, matrix_regression_hvp, matrix_regression_loss

OPS = torch.ops.torch_rescaled


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, form, fast):
    def f(*x):
        return matrix_regression_loss(*x, regularization=0.2, kind=kind, form=form)

    leaves = [t.requires_grad_() for t in oracle.problem(3, 4, 2, 2)]
    checks = {"check_batched_grad": True, "check_undefined_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(f, leaves, fast_mode=fast, check_forward_ad=True, **checks)
    assert gradgradcheck(f, leaves, fast_mode=fast, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("form", FORMS)
def test_third_order(form):
    A1, X, A2, B = oracle.problem(3, 4, 2, 1)

    def trace(X):
        return hessian(lambda x: matrix_regression_loss(A1, x, A2, B, form=form))(X).reshape(2, 2).diagonal().sum()

    assert gradcheck(trace, (X.requires_grad_(),))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_func(kind, form):
    A1, X, A2, B = oracle.problem(5, 6, 3, 2)
    ours = lambda x: matrix_regression_loss(A1, x, A2, B, kind=kind, form=form, is_causal=True)  # noqa: E731
    dense = lambda x: oracle.loss(A1, x, A2, B, kind=kind, form=form, is_causal=True)  # noqa: E731
    V = torch.randn_like(X)
    for transform in (
        lambda f: hessian(f)(X),
        lambda f: jacfwd(jacrev(f))(X),
        lambda f: jacrev(jacrev(f))(X),
        lambda f: jvp(grad(f), (X,), (V,))[1],
        lambda f: jvp(lambda y: jvp(f, (y,), (V,))[1], (X,), (V,))[1],
        lambda f: vmap(f)(torch.stack([X, 2 * X, V])),
        lambda f: vmap(grad(f))(torch.stack([X, 2 * X, V])),
        lambda f: vmap(hessian(f))(torch.stack([X, 2 * X])),
    ):
        torch.testing.assert_close(transform(ours), transform(dense), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dims", [(0, None, None, None), (None, 0, None, 1), (2, 1, 0, 0)], ids=str)
def test_vmap_over_heads(dims):
    point = oracle.problem(5, 6, 3, 2)
    many = [t if dim is None else torch.stack([t, t * 0.5, t + 0.1], dim) for t, dim in zip(point, dims, strict=True)]

    def gradients(f):
        return vmap(grad(lambda *x: f(*x, kind="cosh", form="normalized"), (0, 1, 2, 3)), dims)(*many)

    torch.testing.assert_close(gradients(matrix_regression_loss), gradients(oracle.loss))


def primitive_point():
    A1, X, A2, B = oracle.problem(5, 6, 3, 2)
    return [t.requires_grad_() for t in (A1 @ X, A2, B)], torch.rand(5, 6) < 0.8


def detached(point):
    return [t.detach() for t in point]


def rows(columns):
    return torch.rand(5, columns, dtype=torch.float64)


NO_SOURCE = (None, None, None)
SETTINGS = (False, "exp", "rescaled", "dense")


def statistics(point, mask):
    return OPS._matrix_regression_statistics(*detached(point), mask, *NO_SOURCE, *SETTINGS)


def along(point):
    return [torch.randn_like(t).requires_grad_() for t in point]


def teacher():
    queries, keys = torch.randn(5, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    return {"teacher_query": queries, "teacher_key": keys, "teacher_kind": "cosh"}


def components(batch=()):
    B = oracle.sparse(torch.rand(*batch, 5, 6, dtype=torch.float64), 0.5)
    return {"crow_indices": B[0], "col_indices": B[1], "values": B[2]}


def sources(point, mask):
    """The arguments of primitives for each target that is not dense."""
    taught = teacher()
    pair = [taught["teacher_query"], taught["teacher_key"]]
    numbers = OPS._matrix_regression_statistics(*pair, None, mask, *NO_SOURCE, False, "cosh", "rescaled", "zero")
    return {"cosh": (*pair, numbers), "sparse": tuple(components().values())}


def numbers_along(point, mask, tangents):
    return OPS._matrix_regression_tangents(
        *detached(tangents), *detached(point), mask, *NO_SOURCE, statistics(point, mask), *SETTINGS
    )


def weighted(point, mask):
    tangents = detached(along(point))
    numbers = numbers_along(point, mask, tangents)
    return (*tangents, numbers, rows(1)[:, 0], *detached(point), mask, *NO_SOURCE, statistics(point, mask), *SETTINGS)


def second(point, mask):
    tangents = detached(along(point))
    return (*tangents, numbers_along(point, mask, tangents), *detached(point), mask, *NO_SOURCE, statistics(point, mask), *SETTINGS)


SAMPLES = {
    "matrix_regression_loss": lambda p, m: (oracle.problem(5, 6, 3, 2), {"attn_mask": m, "regularization": 0.1}),
    "matrix_regression_evaluate": lambda p, m: (oracle.problem(5, 6, 3, 2), {"kind": "cosh", "regularization": 0.1}),
    "matrix_regression_hvp": lambda p, m: ([*oracle.problem(5, 6, 3, 2), rows(2)[:3]], {"form": "normalized"}),
    "_matrix_regression_forward": lambda p, m: ((*p, m, *NO_SOURCE, *SETTINGS), {}),
    "_matrix_regression_backward": lambda p, m: (
        (rows(1)[:, 0].requires_grad_(), *p, m, *NO_SOURCE, statistics(p, m), *SETTINGS, [True] * 3),
        {},
    ),
    "_matrix_regression_jvp": lambda p, m: ((*along(p), *p, m, *NO_SOURCE, statistics(p, m), *SETTINGS), {}),
    "_matrix_regression_double_backward": lambda p, m: (
        (*along(p), rows(1)[:, 0].requires_grad_(), *p, m, *NO_SOURCE, statistics(p, m), *SETTINGS, [True] * 4),
        {},
    ),
    "_matrix_regression_statistics": lambda p, m: ((*detached(p), m, *NO_SOURCE, *SETTINGS), {}),
    "_matrix_regression_gradient": lambda p, m: ((*detached(p), m, *NO_SOURCE, statistics(p, m), *SETTINGS), {}),
    "_matrix_regression_moments": lambda p, m: ((*detached(p), m, *NO_SOURCE, statistics(p, m), *SETTINGS, True), {}),
    "_matrix_regression_product": lambda p, m: (
        (*detached(p), m, *NO_SOURCE, statistics(p, m), rows(2), rows(2), rows(2), *SETTINGS, True),
        {},
    ),
    "_matrix_regression_tangents": lambda p, m: (
        (*detached(along(p)), *detached(p), m, *NO_SOURCE, statistics(p, m), *SETTINGS),
        {},
    ),
    "_matrix_regression_gradient_tangent": lambda p, m: (second(p, m), {}),
    "_matrix_regression_columns": lambda p, m: (weighted(p, m), {}),
    "_matrix_regression_elements": lambda p, m: (weighted(p, m), {}),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    args, kwargs = SAMPLES[name](*primitive_point())
    utils = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    opcheck(getattr(OPS, name).default, tuple(args), kwargs, test_utils=utils)


@pytest.mark.parametrize("source", ["cosh", "sparse"])
@pytest.mark.parametrize("name", [n for n in SAMPLES if n.startswith("_")])
def test_opcheck_of_targets(name, source):
    """The same samples without a dense target, and without its tangent."""
    (query, key, target), mask = primitive_point()
    args, kwargs = SAMPLES[name]((query, key, target), mask)
    made = sources((query, key), mask)[source]
    schema = getattr(OPS, name).default._schema.arguments
    given = {a.name: value for a, value in zip(schema, args, strict=True)}
    given |= dict(zip(("target_rows", "target_columns", "target_values"), made, strict=True), target=None, source=source)
    given |= {"tangent_target": None} if "tangent_target" in given else {}
    utils = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    opcheck(getattr(OPS, name).default, tuple(given.values()), kwargs, test_utils=utils)


@pytest.mark.parametrize("target", [teacher, components])
@pytest.mark.parametrize("name", [n for n in SAMPLES if not n.startswith("_")])
def test_opcheck_of_public_targets(name, target):
    args, kwargs = SAMPLES[name](*primitive_point())
    utils = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    opcheck(getattr(OPS, name).default, (*args[:3], None, *args[4:]), kwargs | target(), test_utils=utils)


SOLVERS = {"solve_matrix_regression", "solve_attention_regression"}
ON_THE_HOST = SOLVERS | {f"_{name}" for name in SOLVERS}  # look at numbers: no fake tensors


def test_every_operator_has_a_sample():
    names = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("torch_rescaled::")}
    ours = {n for n in names if "matrix_regression" in n or "attention_regression" in n}
    assert ours == {*SAMPLES, *ON_THE_HOST}


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    leaves = [t.requires_grad_() for t in oracle.problem(5, 6, 3, 2)]

    def f(A1, X, A2, B):
        value = matrix_regression_loss(A1, X, A2, B, kind="cosh", form="normalized", is_causal=True)
        return value + grad(lambda x: matrix_regression_loss(A1, x, A2, B))(X).square().sum()

    expected = torch.autograd.grad(f(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(f, backend=backend, fullgraph=True, dynamic=True)(*leaves), leaves)
    torch.testing.assert_close(found, expected)


def test_script_and_export():
    point = oracle.problem(5, 6, 3, 2)
    scripted = torch.jit.script(matrix_regression_loss)
    assert torch.equal(scripted(*point, kind="sinh"), matrix_regression_loss(*point, kind="sinh"))

    class Model(torch.nn.Module):
        def forward(self, A1, X, A2, B):
            return matrix_regression_loss(A1, X, A2, B, form="normalized")

    rows_of_A1 = torch.export.Dim("n1", min=2)
    program = torch.export.export(Model(), tuple(point), dynamic_shapes=({0: rows_of_A1}, None, None, {0: rows_of_A1}))
    assert torch.equal(program.module()(*point), matrix_regression_loss(*point, form="normalized"))


def test_half_precision_and_autocast_compute_in_float32():
    A1, X, A2, B = oracle.problem(5, 6, 3, 2, dtype=torch.bfloat16)
    expected = matrix_regression_loss(A1.float(), X, A2.float(), B)
    assert torch.equal(matrix_regression_loss(A1, X, A2, B), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrix_regression_loss(A1, X, A2, B), expected)
        assert matrix_regression_evaluate(A1, X, A2, B)[1].dtype == torch.float32
        assert matrix_regression_hvp(A1, X, A2, B, X.bfloat16()).dtype == torch.float32


def test_results_do_not_depend_on_threads_or_layout():
    A1, X, A2, B = oracle.problem(300, 500, 24, 20, (3,), dtype=torch.float32)
    found = []
    for threads, strided in ((1, False), (2, False), (2, True)):
        torch.set_num_threads(threads)
        target = B.mT.contiguous().mT if strided else B
        key = torch.stack([A2, A2], -1)[..., 0] if strided else A2
        found.append([*matrix_regression_evaluate(A1, X, key, target, form="normalized")])
        found[-1].append(matrix_regression_hvp(A1, X, key, target, X, kind="cosh", form="normalized"))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_memory_is_linear():
    """Beside the given B: loss, gradient and Hessian product in X."""
    n = 4096
    A1, X, A2, B = torch.randn(n, 16), torch.randn(16, 16), torch.randn(n, 16), torch.rand(n, n)

    def second_order():
        x = X.clone().requires_grad_()
        (g,) = torch.autograd.grad(matrix_regression_loss(A1, x, A2, B, form="normalized", is_causal=True), x, create_graph=True)
        return torch.autograd.grad(g.sum(), x)

    for f in (second_order, lambda: matrix_regression_hvp(A1, X, A2, B, X), lambda: matrix_regression_evaluate(A1, X, A2, B)):
        assert 0 < peak_bytes(f) < 4 * n * n / 8


def test_not_differentiable_says_so():
    A1, X, A2, B = oracle.problem(5, 6, 3, 2)
    X.requires_grad_()
    for value in (matrix_regression_evaluate(A1, X, A2, B)[0], matrix_regression_hvp(A1, X, A2, B, X)):
        with pytest.raises(RuntimeError, match=r"torch_rescaled::_matrix_regression_"):
            value.sum().backward()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_lost_in_a_flop_count(form):
    A1, X, A2, B = oracle.problem(50, 40, 4, 3)
    X.requires_grad_()
    small, unit, walks = 2 * 50 * 4 * 3, 2 * 50 * 40 * 3, 2 if form == "plain" else 1
    with FlopCounterMode(display=False) as counter:
        (g,) = torch.autograd.grad(matrix_regression_loss(A1, X, A2, B, form=form), X, create_graph=True)
        assert counter.get_total_flops() == 2 * small + (walks + 2) * unit
        torch.autograd.grad(g.sum(), X)
    assert counter.get_total_flops() == 4 * small + (walks + 2 + 5) * unit


@pytest.mark.parametrize("form", FORMS)
def test_empty(form):
    for (n1, n2, d1, d2), batch in (
        ((0, 3, 2, 2), ()),
        ((3, 0, 2, 2), ()),
        ((3, 4, 0, 2), ()),
        ((3, 4, 2, 0), ()),
        ((3, 4, 2, 2), (0,)),
    ):
        leaves = [t.requires_grad_() for t in oracle.problem(n1, n2, d1, d2, batch)]
        value = matrix_regression_loss(*leaves, form=form)
        assert value.shape == batch and value.isfinite().all()
        gradients = torch.autograd.grad(value.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in gradients), leaves)
        assert all(g.isfinite().all() and g.shape == t.shape for g, t in zip((*gradients, *second), 2 * leaves, strict=True))
        A1, X, A2, B = (t.detach() for t in leaves)
        assert matrix_regression_evaluate(A1, X.detach(), A2, B, form=form)[1].shape == X.shape
        assert matrix_regression_hvp(A1, X.detach(), A2, B, X.detach(), form=form).shape == X.shape


loss, hvp = matrix_regression_loss, matrix_regression_hvp
MESSAGES = [
    (lambda A, X, C, B: loss(A[0], X, C, B), ValueError, "matrix_regression_loss: expected A1 of at least 2 dimensions, got [3]"),
    (lambda A, X, C, B: loss(A, X.T, C, B), ValueError, "X of shape [*, columns of A1, columns of A2] = [*, 3, 2], got [2, 3]"),
    (lambda A, X, C, B: loss(A, X, C, B.T), ValueError, "B of shape [*, rows of A1, rows of A2] = [*, 5, 6], got [6, 5]"),
    (lambda A, X, C, B: loss(A, X.float(), C, B), TypeError, "expected X of dtype Double with A1 of dtype Double, got Float"),
    (lambda A, X, C, B: loss(A, X, C.float(), B), TypeError, "expected A2 of dtype Double with A1 of dtype Double, got Float"),
    (lambda A, X, C, B: loss(A.long(), X, C, B), TypeError, "A1 of dtype float32, float64, bfloat16 or float16, got Long"),
    (lambda A, X, C, B: loss(A, X, C, B, kind="tanh"), ValueError, "expected kind 'exp', 'cosh' or 'sinh', got 'tanh'"),
    (lambda A, X, C, B: loss(A, X, C, B, form="raw"), ValueError, "form 'rescaled', 'normalized' or 'plain', got 'raw'"),
    (lambda A, X, C, B: loss(A, X, C, B, regularization=-1.0), ValueError, "expected a regularization of at least 0, got -1"),
    (lambda A, X, C, B: loss(A, X, C, B, attn_mask=B), TypeError, "attn_mask of dtype Bool (true: takes part), got Double"),
    (lambda A, X, C, B: loss(A, X, C, B, attn_mask=B.T > 0), ValueError, "attn_mask broadcastable to [*, 5, 6], got [6, 5]"),
    (lambda A, X, C, B: loss(A.expand(2, 5, 3), X.expand(3, 3, 2), C, B), ValueError, "A1 with leading dimensions that"),
    (lambda A, X, C, B: loss(A, X, C, B.to("meta")), ValueError, "expected B on A1's device cpu, got meta"),
    (lambda A, X, C, B: loss(A, X, C, [1.0]), TypeError, "expected B to be a torch.Tensor, got list"),
    (lambda A, X, C, B: loss(A, X, C, B.to_sparse()), (ValueError, NotImplementedError), "expected a dense (strided) B"),
    (lambda A, X, C, B: hvp(A, X, C, B, B), ValueError, "matrix_regression_hvp: expected V of shape X's = [*, 3, 2], got [5, 6]"),
    (lambda A, X, C, B: hvp(A, X, C, B, X, curvature="half"), ValueError, "curvature 'gauss_newton' or 'full', got 'half'"),
]


@pytest.mark.parametrize("case", range(len(MESSAGES)))
def test_bad_input(case):
    call, error, message = MESSAGES[case]
    with pytest.raises(error, match=re.escape(message)):
        call(*oracle.problem(5, 6, 3, 2))
