# SPDX-License-Identifier: BSD-3-Clause
"""gradcheck, torch.func, compile, script, modes, threads, empty and bad input, of the regression operators."""

import re

import hypothesis
import oracle_regression as oracle
import pytest
import torch
from hypothesis import strategies as st
from oracle_regression import FORMS, KINDS
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import torch_rescaled
from torch_rescaled import newton_step, regression_evaluate, regression_hvp, regression_loss

OPS = torch.ops.torch_rescaled


def leaves(n=5, d=3, batch=(), weights=True):
    return [t.requires_grad_() for t in oracle.problem(n, d, batch, weights=weights) if t is not None]


def loss_of(kind, form):
    def f(A, b, x, row_weight=None, penalty_weight=None):
        return regression_loss(A, b, x, row_weight, penalty_weight, kind=kind, form=form)

    return f


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, form, fast):
    f = loss_of(kind, form)
    options = {"check_batched_grad": True, "check_undefined_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(f, leaves(), fast_mode=fast, check_forward_ad=True, **options)
    assert gradgradcheck(f, leaves(n=3, d=2), fast_mode=fast, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("form", FORMS)
def test_third_order(form):
    A, b, x, *_ = leaves(weights=False)

    def trace(x):
        return hessian(loss_of("exp", form), 2)(A.detach(), b.detach(), x).diagonal().sum()

    assert gradcheck(trace, (x,))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_func(kind, form):
    A, b, x, w, p = (t.detach() for t in leaves())
    ours = lambda x: loss_of(kind, form)(A, b, x, w, p)  # noqa: E731
    dense = lambda x: oracle.loss(A, b, x, w, p, kind=kind, form=form)  # noqa: E731
    v = torch.randn_like(x)
    for transform in (
        lambda f: hessian(f)(x),
        lambda f: jacfwd(jacrev(f))(x),
        lambda f: jacrev(jacrev(f))(x),
        lambda f: jvp(grad(f), (x,), (v,))[1],
        lambda f: jvp(lambda y: jvp(f, (y,), (v,))[1], (x,), (v,))[1],
        lambda f: vmap(f)(torch.stack([x, 2 * x, v])),
        lambda f: vmap(grad(f))(torch.stack([x, 2 * x, v])),
        lambda f: vmap(hessian(f))(torch.stack([x, 2 * x])),
    ):
        torch.testing.assert_close(transform(ours), transform(dense), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, None), (None, None, 1), (2, 1, 0)], ids=str)
def test_vmap_of_gradients(dims):
    A, b, x = (t.detach() for t in leaves(weights=False))
    many = [t if dim is None else torch.stack([t, t * 0.5, t + 0.1], dim) for t, dim in zip((A, b, x), dims, strict=True)]
    ours = vmap(grad(loss_of("cosh", "normalized"), (0, 1, 2)), dims)(*many)
    dense = vmap(grad(lambda A, b, x: oracle.loss(A, b, x, kind="cosh", form="normalized"), (0, 1, 2)), dims)(*many)
    torch.testing.assert_close(ours, dense)


SAMPLES = {
    "regression_loss": lambda p: (p[:3], {"row_weight": p[3], "penalty_weight": p[4], "kind": "cosh"}),
    "regression_evaluate": lambda p: (detached(p)[:3], {"form": "plain", "curvature": "clipped"}),
    "regression_hvp": lambda p: ((*detached(p)[:3], torch.randn(3, dtype=torch.float64)), {"form": "normalized"}),
    "_regression_forward": lambda p: ((*p, "exp", "rescaled"), {}),
    "_regression_backward": lambda p: ((one(), *p, p[2].detach(), "exp", "rescaled", [True] * 5), {}),
    "_regression_jvp": lambda p: ((*along(p), *p, p[2].detach(), "sinh", "normalized"), {}),
    "_regression_double_backward": lambda p: ((*along(p), one(), *p, p[2].detach(), "exp", "plain", [True] * 6), {}),
    "_regression_evaluate": lambda p: ((*detached(p), "exp", "rescaled"), {}),
    "_regression_gauss_newton": lambda p: ((*detached(p)[:4], "exp", "rescaled"), {}),
    "_regression_product": lambda p: ((*detached(p), p[2].detach(), "exp", "rescaled", "full"), {}),
    "_regression_matvec": lambda p: ((p[0].detach(), p[2].detach()), {}),
    "_regression_transposed": lambda p: ((p[0].detach(), torch.randn(2, 5, dtype=torch.float64), True), {}),
    "_regression_statistics": lambda p: ((p[1].detach(), None, None, *detached(p)[1:2], None, None, "exp", "plain"), {}),
    "_regression_rows": lambda p: ((p[1].detach(), statistics(p), p[1].detach(), None, None, "exp", "plain"), {}),
    "_regression_model": lambda p: ((torch.randn(7, 5, dtype=torch.float64), p[1].detach()), {}),
    "_regression_curvature": lambda p: ((p[0].detach(), torch.randn(7, 5, dtype=torch.float64), statistics(p), "full"), {}),
    "_regression_part": lambda p: ((*detached(p), "exp", "rescaled"), {}),
    "_regression_part_statistics": lambda p: ((p[1].detach(), None, None, *detached(p)[1:2], None, None, "exp", "plain"), {}),
    "_regression_part_gram": lambda p: ((p[0].detach(), torch.randn(7, 5, dtype=torch.float64), "full"), {}),
    "_regression_check": lambda p: ((*detached(p)[:2], None, None, "exp", "plain"), {}),
}
ON_THE_HOST = {
    "newton_step",
    "solve_regression",
    "_solve_regression",
    "_regression_sampled_hessian",
}  # look at numbers: no fake tensors


def one():
    return torch.ones((), dtype=torch.float64, requires_grad=True)


def along(p):
    return [torch.randn_like(t).requires_grad_() for t in p]


def detached(p):
    return [t.detach() for t in p]


def statistics(p):
    return OPS._regression_statistics(p[1].detach(), None, None, p[1].detach(), None, None, "exp", "plain")[0]


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    args, kwargs = SAMPLES[name](leaves())
    utils = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    opcheck(getattr(OPS, name).default, tuple(args), kwargs, test_utils=utils)


def test_every_operator_has_a_sample():
    names = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("torch_rescaled::")}
    ours = {n for n in names if ("regression" in n and not re.search("matrix|attention|_csr$", n)) or n == "newton_step"}
    assert ours == {*SAMPLES, *ON_THE_HOST}


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    A, b, x, w, p = leaves()

    def f(A, b, x, w, p):
        value = regression_loss(A, b, x, w, p, kind="cosh", form="normalized")
        return value + grad(lambda y: regression_loss(A, b, y, w, p))(x).square().sum()

    expected = torch.autograd.grad(f(A, b, x, w, p), (A, b, x, w, p))
    found = torch.autograd.grad(torch.compile(f, backend=backend, fullgraph=True, dynamic=True)(A, b, x, w, p), (A, b, x, w, p))
    torch.testing.assert_close(found, expected)


def test_script_and_export():
    A, b, x = (t.detach() for t in leaves(weights=False))
    scripted = torch.jit.script(regression_loss)
    assert torch.equal(scripted(A, b, x, kind="sinh"), regression_loss(A, b, x, kind="sinh"))

    class Model(torch.nn.Module):
        def forward(self, A, b, x):
            return regression_loss(A, b, x, form="normalized")

    program = torch.export.export(
        Model(), (A, b, x), dynamic_shapes=({0: torch.export.Dim("n", min=2)}, {0: torch.export.Dim("n", min=2)}, None)
    )
    assert torch.equal(program.module()(A, b, x), regression_loss(A, b, x, form="normalized"))


def test_autocast_computes_in_float32():
    A, b, x = (t.detach().float() for t in leaves(weights=False))
    with torch.autocast("cpu", torch.bfloat16):
        loss = regression_loss(A.bfloat16(), b, x.bfloat16(), form="normalized")
        assert loss.dtype == torch.float32
        torch.testing.assert_close(regression_loss(A, b, x), torch_rescaled.regression_loss(A, b, x))
        assert regression_evaluate(A, b.bfloat16(), x, curvature="full")[2].dtype == torch.float32
        assert regression_hvp(A, b, x, x.bfloat16()).dtype == torch.float32


def test_results_do_not_depend_on_threads():
    A, b, x, w, p = oracle.problem(40000, 24, weights=True, dtype=torch.float32)
    found = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        found.append([regression_loss(A, b, x, w, p), *regression_evaluate(A, b, x, w, p, curvature="full")])
        found[-1] += [*regression_evaluate(A, b, x, w, p), regression_hvp(A, b, x, x, w, p)]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_not_differentiable_says_so():
    A, b, x = (t.detach() for t in leaves(weights=False))
    x.requires_grad_()
    for value in (regression_evaluate(A, b, x)[0], regression_hvp(A, b, x, x)):
        with pytest.raises(RuntimeError, match=r"torch_rescaled::_regression_(evaluate|product)"):
            value.sum().backward()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_lost_in_a_flop_count(form):
    A, b, x = (t.detach() for t in leaves(n=50, d=4, weights=False))
    x.requires_grad_()
    count = {"plain": (4, 6)}.get(form, (8, 16))
    with FlopCounterMode(display=False) as counter:
        (g,) = torch.autograd.grad(regression_loss(A, b, x, form=form), x, create_graph=True)
        assert counter.get_total_flops() == count[0] * 50 * 4
        torch.autograd.grad(g.sum(), x)
    assert counter.get_total_flops() == sum(count) * 50 * 4


@pytest.mark.parametrize("form", FORMS)
def test_empty(form):
    for n, d, batch in ((0, 3, ()), (4, 0, ()), (0, 0, ()), (3, 2, (0,)), (3, 2, (2, 0, 1))):
        x = torch.ones(*batch, d, dtype=torch.float64, requires_grad=True)
        A, b = torch.ones(*batch, n, d, dtype=torch.float64), torch.ones(*batch, n, dtype=torch.float64)
        value = regression_loss(A, b, x, form=form)
        assert value.shape == batch and value.isfinite().all()
        (g,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        assert torch.equal(g, torch.zeros_like(x))
        assert regression_evaluate(A, b, x.detach(), form=form, curvature="full")[2].shape == (*batch, d, d)


@hypothesis.given(
    n=st.integers(1, 600), d=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 30.0]), kind=st.sampled_from(KINDS),
    form=st.sampled_from(FORMS), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_gradient_is_that_of_the_scaled_formula(n, d, scale, kind, form, dtype):
    """At any size of the logits: against float64, by the other way to a gradient (logits, then the vectors of rows)."""
    torch.manual_seed(n * 41 + d)
    A, b, x, *_ = oracle.problem(n, d, dtype=dtype)
    x = x * scale
    log_loss, gradient, _, log_scale = regression_evaluate(A, b, x, kind=kind, form=form)
    exact = [t.double() for t in (A, b, x)]
    reference = regression_evaluate(*exact, kind=kind, form=form, curvature="gauss_newton")
    if form != "normalized" or kind != "sinh":  # near its pole sinh loses as many digits as it cancels
        size = 1 + (A.double().abs() @ exact[2].abs()).max()
        tolerance = 100 * torch.finfo(dtype).eps * size
        assert abs(log_loss.double() - reference[0]) <= tolerance * (1 + reference[0].abs()) or reference[0] < -30
        true_gradient, ours = reference[1], gradient.double() * (log_scale.double() - reference[3]).exp()
        bound = (exact[0].abs().sum(0).max() + 1) * max(1.0, b.abs().max().item() ** 2)
        assert (ours - true_gradient).abs().max() <= tolerance * bound * 10


MESSAGES = [
    (lambda A, b, x: regression_loss(A[0], b, x), ValueError, "regression_loss: expected A of at least 2 dimensions [*, n, d], got [3]"),
    (lambda A, b, x: regression_loss(A, b[1:], x), ValueError, "expected b of shape [*, 5] to match A's rows, got [4]"),
    (lambda A, b, x: regression_loss(A, b, x[1:]), ValueError, "expected x of shape [*, 3] to match A's columns, got [2]"),
    (lambda A, b, x: regression_loss(A, b.float(), x), TypeError, "expected b of dtype Double with A of dtype Double, got Float"),
    (lambda A, b, x: regression_loss(A.long(), b, x), TypeError, "expected A of dtype float32, float64, bfloat16 or float16, got Long"),
    (lambda A, b, x: regression_loss(A, b, x, kind="tanh"), ValueError, "expected kind 'exp', 'cosh' or 'sinh', got 'tanh'"),
    (lambda A, b, x: regression_loss(A, b, x, form="raw"), ValueError, "expected form 'rescaled', 'normalized' or 'plain', got 'raw'"),
    (lambda A, b, x: regression_loss(A, b.expand(2, 5), x.expand(3, 3)), ValueError, "expected b with leading dimensions that broadcast to [3]"),
    (lambda A, b, x: regression_loss(A, b, x, row_weight=x), ValueError, "expected row_weight of shape [*, 5] to match A's rows, got [3]"),
    (lambda A, b, x: regression_loss(A, b.to("meta"), x), ValueError, "expected b on A's device cpu, got meta"),
    (lambda A, b, x: regression_loss(A, b, [1.0]), TypeError, "expected x to be a torch.Tensor, got list"),
    (lambda A, b, x: regression_hvp(A, b, x, b), ValueError, "regression_hvp: expected v of shape [*, 3] to match A's columns, got [5]"),
    (lambda A, b, x: regression_hvp(A, b, x, x, curvature="none"), ValueError, "expected curvature 'gauss_newton', 'clipped' or 'full', got 'none'"),
    (lambda A, b, x: regression_evaluate(A, b, x, curvature="half"), ValueError, "expected curvature 'none', 'gauss_newton', 'clipped' or 'full', got 'half'"),
    (lambda A, b, x: newton_step(A, b, x, damping=-1.0), ValueError, "newton_step: expected damping >= 0, got -1"),
    (lambda A, b, x: regression_loss(A.to_sparse(), b, x), (ValueError, NotImplementedError), "expected a dense (strided) A"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(MESSAGES)))
def test_bad_input(case):
    call, error, message = MESSAGES[case]
    A, b, x = (t.detach() for t in leaves(weights=False))
    with pytest.raises(error, match=re.escape(message)):
        call(A, b, x)
