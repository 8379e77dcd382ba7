# SPDX-License-Identifier: BSD-3-Clause
"""Matrix regressions on targets that are not dense, a teacher's map or components of rows, against those formed."""

import itertools
import re
from functools import partial

import oracle_matrix_regression as oracle
import pytest
import torch
from oracle_matrix_regression import FORMS, KINDS
from test_attention_memory import peak_bytes
from test_matrix_regression import MASKS, derivatives, options
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vmap

from torch_rescaled import matrix_regression_evaluate, matrix_regression_hvp, matrix_regression_loss

SOURCES = ("exp", "cosh", "sinh", "sparse")  # a teacher of a kind, or components


def target(source, n1, n2, batch=(), *, dtype=torch.float64, **masks):
    """The arguments of a target, and the matrix they stand for."""
    if source == "sparse":
        B = oracle.problem(n1, n2, 1, 1, batch)[3].to(dtype)
        crow, columns, values = oracle.sparse(B, 0.4)
        made = {"crow_indices": crow, "col_indices": columns, "values": values}
        return made, oracle.to_dense(crow, columns, values, n2)
    query, key = (0.5 * torch.randn(*batch, n, 5, dtype=torch.float64) + 0.4 for n in (n1, n2))
    query, key = query.to(dtype), key.to(dtype)
    made = {"teacher_query": query, "teacher_key": key, "teacher_kind": source}
    return made, oracle.teacher_map(query.double(), key.double(), kind=source, **masks).to(dtype)


def masks_of(settings):
    return {name: settings[name] for name in ("attn_mask", "is_causal") if name in settings}


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
def test_as_formed(kind, source, form, mask):
    """Loss, derivatives to second order, products and evaluation."""
    for (n1, n2), batch in (((5, 7), ()), ((70, 130), (2,))):
        torch.manual_seed(n1)
        settings = {"kind": kind, "form": form, **options(mask, n1, n2)}
        made, B = target(source, n1, n2, batch, **masks_of(settings))
        point = oracle.problem(n1, n2, 6, 9, batch, shared=("A2",))[:3]
        tangents = [torch.randn_like(t) for t in point]
        found = derivatives(partial(matrix_regression_loss, **settings, **made), point, tangents)
        expected = derivatives(lambda *x, B=B, s=settings: oracle.loss(*x, B, **s), point, tangents)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1 + b.abs().max().item()))
        detached = [t.detach() for t in point]
        for curvature in ("full", "gauss_newton"):
            product = matrix_regression_hvp(*detached, None, tangents[1], **settings, curvature=curvature, **made)
            dense = matrix_regression_hvp(*detached, B, tangents[1], **settings, curvature=curvature)
            torch.testing.assert_close(product, dense, rtol=1e-9, atol=1e-9 * (1 + dense.abs().max().item()))
        scaled = matrix_regression_evaluate(*detached, **settings, **made), matrix_regression_evaluate(*detached, B, **settings)
        found, dense = ((log_loss, gradient * log_scale[..., None, None].exp()) for log_loss, gradient, log_scale in scaled)
        torch.testing.assert_close(found, dense, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["exp", "cosh", "sparse"])
def test_in_float32(source, form):
    made, B = target(source, 90, 200, dtype=torch.float32)
    point = oracle.problem(90, 200, 6, 24, dtype=torch.float32)[:3]
    tangents = [torch.randn_like(t) for t in point]
    found = derivatives(partial(matrix_regression_loss, kind="exp", form=form, **made), point, tangents)
    expected = derivatives(partial(matrix_regression_loss, kind="exp", form=form), [*point, B], [*tangents, torch.zeros_like(B)])
    n = len(point)
    expected = [*expected[: n + 1], *expected[n + 2 : 2 * n + 2], *expected[2 * n + 3 : 3 * n + 3], expected[-1]]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))


@pytest.mark.usefixtures("on_device")
def test_large_scores_of_a_teacher():
    """Its rows are normalized online: scores whose exponentials overflow."""
    made, _ = target("exp", 6, 300, dtype=torch.float32)
    made["teacher_query"] *= 400
    point = oracle.problem(6, 300, 3, 4, dtype=torch.float32)[:3]
    B = torch.softmax(made["teacher_query"].double() @ made["teacher_key"].double().mT, -1)
    for form in FORMS:
        found = matrix_regression_loss(*point, form=form, **made).double()
        truth = oracle.loss(*(t.double() for t in point), B, kind="exp", form=form)
        torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("on_device")
def test_the_plain_form_beside_large_values():
    crow, columns, values = oracle.sparse(torch.full((4, 70), 1e30), 0.3)
    made = {"crow_indices": crow, "col_indices": columns, "values": values}
    point = oracle.problem(4, 70, 3, 4, dtype=torch.float32)[:3]
    log_loss = matrix_regression_evaluate(*point, form="plain", **made)[0]
    expected = oracle.to_dense(crow, columns, values.double(), 70).square().sum().log() - torch.tensor(2.0).log()
    torch.testing.assert_close(log_loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", SOURCES)
def test_gradcheck(source, form):
    made, _ = target(source, 3, 4)
    leaves = [t.requires_grad_() for t in oracle.problem(3, 4, 2, 2)[:3]]

    def f(*x):
        return matrix_regression_loss(*x, regularization=0.2, kind="cosh", form=form, **made)

    assert gradcheck(f, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, leaves, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("source", SOURCES)
def test_transforms(source):
    made, B = target(source, 5, 6, is_causal=True)
    A1, X, A2 = oracle.problem(5, 6, 3, 2)[:3]
    ours = lambda x: matrix_regression_loss(A1, x, A2, form="normalized", is_causal=True, **made)  # noqa: E731
    dense = lambda x: oracle.loss(A1, x, A2, B, kind="exp", form="normalized", is_causal=True)  # noqa: E731
    V = torch.randn_like(X)
    third = lambda f: grad(lambda x: hessian(f)(x).square().sum())(X)  # noqa: E731
    for transform in (
        lambda f: hessian(f)(X),
        lambda f: jvp(lambda y: jvp(f, (y,), (V,))[1], (X,), (V,))[1],
        lambda f: vmap(hessian(f))(torch.stack([X, 2 * X])),
        third,
    ):
        torch.testing.assert_close(transform(ours), transform(dense), rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("source", SOURCES)
def test_vmap_over_targets(source):
    made, _ = target(source, 5, 6, (3,))
    tensors = {name: t for name, t in made.items() if isinstance(t, torch.Tensor)}
    rest = {name: t for name, t in made.items() if name not in tensors}
    point = oracle.problem(5, 6, 3, 2)[:3]
    loss = lambda given, X: matrix_regression_loss(point[0], X, point[2], **given, **rest)  # noqa: E731
    found = vmap(grad(loss, 1), (0, None))(tensors, point[1])
    for i in range(3):
        each = {name: t[i] for name, t in tensors.items()}
        torch.testing.assert_close(found[i], grad(loss, 1)(each, point[1]))
    stacked = torch.stack([point[1]] * 3)
    torch.testing.assert_close(vmap(grad(loss, 1), (None, 0))({n: t[0] for n, t in tensors.items()}, stacked)[1], found[0])


@pytest.mark.parametrize("source", ["cosh", "sparse"])
def test_broadcast_targets_and_compile_and_export_and_script(source):
    made, B = target(source, 5, 6)
    point = oracle.problem(5, 6, 3, 2, (2, 3), shared=("X",))[:3]
    expected = oracle.loss(*point, B, kind="sinh", form="rescaled")
    torch.testing.assert_close(matrix_regression_loss(*point, kind="sinh", **made), expected)

    class Model(torch.nn.Module):
        def forward(self, A1, X, A2):
            return matrix_regression_loss(A1, X, A2, kind="sinh", **made).sum()

    model = Model()
    assert torch.equal(torch.export.export(model, tuple(point)).module()(*point), model(*point))
    leaves = [t.requires_grad_() for t in point]
    gradients = torch.autograd.grad(model(*leaves), leaves)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), gradients)
    for f, args in ((matrix_regression_loss, point), (matrix_regression_evaluate, point),
                    (matrix_regression_hvp, [*point, None, point[1]])):  # fmt: skip
        detached = [t if t is None else t.detach() for t in args]
        torch.testing.assert_close(torch.jit.script(f)(*detached, **made), f(*detached, **made), rtol=0, atol=0)


def test_half_precision_teachers_compute_in_float32():
    A1, X, A2, _ = oracle.problem(5, 6, 3, 2, dtype=torch.bfloat16)
    pair = {"teacher_query": torch.randn(5, 3).bfloat16(), "teacher_key": torch.randn(6, 3).bfloat16()}
    expected = matrix_regression_loss(A1.float(), X, A2.float(), **{name: t.float() for name, t in pair.items()})
    assert torch.equal(matrix_regression_loss(A1, X, A2, **pair), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrix_regression_loss(A1, X, A2, **pair), expected)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("source", ["exp", "sparse"])
def test_results_do_not_depend_on_threads_or_layout(source):
    made, _ = target(source, 300, 500, (3,), dtype=torch.float32)
    point = oracle.problem(300, 500, 24, 20, (3,), dtype=torch.float32)[:3]
    strided = {n: torch.stack([t, t], -1)[..., 0] if isinstance(t, torch.Tensor) else t for n, t in made.items()}
    found = []
    for threads, given in ((1, made), (2, made), (2, strided)):
        torch.set_num_threads(threads)
        leaves = [t.detach().requires_grad_() for t in point]
        gradients = torch.autograd.grad(matrix_regression_loss(*leaves, **given).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in gradients), leaves)
        found.append([*gradients, *second, *matrix_regression_evaluate(*point, form="normalized", **given)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("source", ["teacher", "sparse", "dense"])
def test_memory_is_linear(source):
    """Beside the arguments: every derivative to second order in A1, X and A2, evaluation and products."""
    n = 4096
    A1, X, A2 = torch.randn(n, 16), torch.randn(16, 16), torch.randn(n, 16) / 16
    each = torch.arange(n * 4)
    made = {
        "teacher": {"teacher_query": torch.randn(n, 8), "teacher_key": torch.randn(n, 8)},
        "sparse": {"crow_indices": torch.arange(n + 1) * 4, "col_indices": each % 4, "values": torch.rand(n * 4)},
        "dense": {"B": torch.rand(n, n)},
    }[source]
    product = dict(made)
    B = product.pop("B", None)

    def second_order():
        leaves = [t.clone().requires_grad_() for t in (A1, X, A2)]
        gradients = torch.autograd.grad(matrix_regression_loss(*leaves, form="normalized", **made), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.sum() for g in gradients), leaves)

    def forward_mode():
        with forward_ad.dual_level():
            return matrix_regression_loss(*(forward_ad.make_dual(t, t) for t in (A1, X, A2)), form="normalized", **made)

    for f in (second_order, forward_mode, lambda: matrix_regression_hvp(A1, X, A2, B, X, **product),
              lambda: matrix_regression_evaluate(A1, X, A2, **made)):  # fmt: skip
        assert 0 < peak_bytes(f) < 4 * n * n / 8


def test_a_gradient_of_B_is_all_that_has_its_size():
    n = 2048
    A1, X, A2, B = torch.randn(n, 16), torch.randn(16, 16), torch.randn(n, 16) / 16, torch.rand(n, n).requires_grad_()
    peak = peak_bytes(lambda: torch.autograd.grad(matrix_regression_loss(A1, X, A2, B), B))
    assert 4 * n * n <= peak < 1.5 * 4 * n * n


def test_teachers_and_values_are_constants():
    A1, X, A2 = oracle.problem(5, 6, 3, 2)[:3]
    for source, name in (("exp", "teacher_query"), ("exp", "teacher_key"), ("sparse", "values")):
        made, _ = target(source, 5, 6)
        loss = lambda t, made=made, name=name: matrix_regression_loss(A1, X, A2, **{**made, name: t})  # noqa: E731
        message = re.escape(f"matrix_regression_loss: expected {name} to be a constant")
        with pytest.raises(NotImplementedError, match=message):
            loss(made[name].clone().requires_grad_())
        with pytest.raises(NotImplementedError, match=message):
            grad(loss)(made[name])
        with pytest.raises(NotImplementedError, match=message):
            jvp(loss, (made[name],), (made[name],))
        with pytest.raises((NotImplementedError, RuntimeError)):
            grad(lambda t, loss=loss: vmap(loss)(t[None]).sum())(made[name])
        with torch.no_grad():
            assert loss(made[name].clone().requires_grad_()).isfinite()


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("form", FORMS)
def test_empty(form):
    for n1, n2 in ((0, 3), (3, 0), (3, 4)):
        for source in ("exp", "sparse"):
            made, _ = target(source, n1, n2)
            if source == "sparse" and n1 == 3:
                made = {"crow_indices": torch.zeros(4, dtype=torch.long), "col_indices": torch.zeros(0, dtype=torch.long),
                        "values": torch.zeros(0, dtype=torch.float64)}  # fmt: skip
            leaves = [t.requires_grad_() for t in oracle.problem(n1, n2, 2, 2)[:3]]
            gradients = torch.autograd.grad(matrix_regression_loss(*leaves, form=form, **made), leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.sum() for g in gradients), leaves)
            assert all(g.isfinite().all() and g.shape == t.shape for g, t in zip((*gradients, *second), 2 * leaves, strict=True))


def messages():
    query, key = torch.randn(5, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    crow, columns, values = torch.tensor([0, 2, 2, 3, 3, 3]), torch.tensor([1, 4, 5]), torch.rand(3, dtype=torch.float64)
    rows = {"crow_indices": crow, "col_indices": columns, "values": values}
    taught = {"teacher_query": query, "teacher_key": key}
    return [
        ({}, ValueError, "expected one target, B, or teacher_query and teacher_key, or crow_indices"),
        (taught | rows, ValueError, "values; got more than one"),
        (taught | {"B": torch.rand(5, 6, dtype=torch.float64)}, ValueError, "values; got more than one"),
        ({"teacher_query": query}, ValueError, "expected teacher_query and teacher_key together, got one of them"),
        ({"values": values}, ValueError, "expected crow_indices, col_indices and values together"),
        (taught | {"teacher_kind": "signed"}, ValueError, "expected teacher_kind 'exp', 'cosh' or 'sinh', got 'signed'"),
        (taught | {"teacher_key": key[:, :2]}, ValueError, "columns of teacher_query] = [*, 6, 3], got [6, 2]"),
        (taught | {"teacher_query": key}, ValueError, "teacher_query of shape [*, rows of A1, e] = [*, 5, 3], got [6, 3]"),
        (taught | {"teacher_query": query.float()}, TypeError, "teacher_query of dtype Double with A1 of dtype Double, got Float"),
        (taught | {"teacher_query": [1.0]}, TypeError, "expected teacher_query to be a torch.Tensor, got list"),
        (rows | {"crow_indices": crow.int()}, TypeError, "expected crow_indices of dtype int64, got Int"),
        (rows | {"crow_indices": crow[:4]}, ValueError, "crow_indices of shape [*, rows + 1] = [*, 6], got [4]"),
        (rows | {"col_indices": columns[:2]}, ValueError, "col_indices of as many elements as values, 3, got [2]"),
        (rows | {"values": values.float()}, TypeError, "values of dtype Double with A1 of dtype Double, got Float"),
        (rows | {"crow_indices": crow + 1}, ValueError, "crow_indices from 0 to 3, the number of values, got 1 to 4"),
        (rows | {"crow_indices": torch.tensor([0, 2, 1, 3, 3, 3])}, ValueError, "that never decrease, got 2 and then 1"),
        (rows | {"col_indices": torch.tensor([1, 6, 5])}, ValueError, "none twice, within 0 to 5, got 6 in row 0"),
        (rows | {"col_indices": torch.tensor([1, 1, 5])}, ValueError, "col_indices of a row ascending, none twice"),
        (rows | {"col_indices": torch.tensor([-1, 1, 5])}, ValueError, "got -1 in row 0"),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(len(messages())))
def test_bad_input(case):
    given, error, message = messages()[case]
    A1, X, A2 = oracle.problem(5, 6, 3, 2)[:3]
    for f in (matrix_regression_loss, matrix_regression_evaluate):
        with pytest.raises(error, match=re.escape(message)):
            f(A1, X, A2, **given)
    with pytest.raises(error, match=re.escape(message)):
        matrix_regression_hvp(A1, X, A2, given.pop("B", None), X, **given)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case", [i for i, (_, _, text) in enumerate(messages()) if re.search("1 to 4|never decrease|of a row|in row", text)]
)
def test_wrong_components_are_nan_on_cuda(case):
    """There they are not looked at before: nothing waits for the device."""
    given = {name: t.cuda() for name, t in messages()[case][0].items()}
    if torch.ops.torch_rescaled._cuda_path(0, "matrix_regression") == "plain":
        pytest.skip("the plain-tensor path stops at them")
    point = [t.cuda() for t in oracle.problem(5, 6, 3, 2)[:3]]
    assert matrix_regression_loss(*point, **given).isnan()


@pytest.mark.usefixtures("on_device")
def test_indices_that_lie_are_never_followed():
    """Later passes trust the statistics, not the memory: with other indices they give other numbers, and read nothing outside."""
    made, _ = target("sparse", 40, 90)
    ops = torch.ops.torch_rescaled
    point = [torch.randn(40, 3, dtype=torch.float64), torch.randn(90, 3, dtype=torch.float64), None, None]
    settings = (False, "exp", "rescaled", "sparse")
    statistics = ops._matrix_regression_statistics(*point, *made.values(), *settings)
    for name, other in itertools.product(("crow_indices", "col_indices"), (-(2**40), 2**40)):
        lied = {**made, name: made[name] + other}
        assert ops._matrix_regression_gradient(*point, *lied.values(), statistics, *settings).shape == (40, 3)
