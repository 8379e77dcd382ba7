# SPDX-License-Identifier: BSD-3-Clause
"""torch.compile: full graphs without recompilation, transforms inside, dropout, compiled autograd; refusals by message."""

import pytest
import torch
import torch._dynamo.compiled_autograd
from helpers import as_plain_tensors
from torch._dynamo.utils import counters
from torch.autograd import forward_ad
from torch.func import grad, hessian, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from torch_rescaled import attention, attention_with_normalizer

# Warnings of torch's own code: Inductor uses what torch deprecates, compiled autograd looks at .grad of every tensor.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`torch._prims_common.check` is deprecated:FutureWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor is being accessed:UserWarning",
)
WITHOUT_RECOMPILATION = torch._dynamo.config.patch(error_on_recompile=True)
SIZES = ((2, 5, 7), (5, 8, 10), (7, 11, 9))  # batch, queries, keys; the first all different: equal ones are taken for one symbol


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()


def qkv(batch=2, n=6, m=7, heads=3, dtype=torch.float64):
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in ((batch, heads, n, 4), (batch, 3, m, 4), (batch, 3, m, 4))]


def same(a, b):
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        torch.testing.assert_close(x, y)


def loss(q, k, v, kind="cosh"):
    return attention(q, k, v, is_causal=True, kind=kind).sin().sum()


def of_all_outputs(*x):
    return sum(t.sin().sum() for t in attention_with_normalizer(*x, is_causal=True, enable_gqa=True, kind="sinh"))


def with_bias(batch, n, m, heads=3, dtype=torch.float64):
    return [*qkv(batch, n, m, heads, dtype), torch.randn(1, heads, n, m, dtype=dtype, requires_grad=True)]


# name -> function, inputs for a batch, a number of queries and one of keys
DYNAMIC = {
    "exp": (lambda *x: loss(*x, kind="exp"), qkv),
    "sinh": (lambda *x: loss(*x, kind="sinh"), qkv),
    "bias": (lambda *x: attention(*x, kind="cosh").sin().sum(), with_bias),
    "mask": (lambda *x: attention(*x, kind="signed").sin().sum(), lambda b, n, m: [*qkv(b, n, m), torch.rand(b, 1, n, m) > 0.3]),
    "groups, bias, normalizer": (of_all_outputs, lambda b, n, m: with_bias(b, n, m, heads=6)),
    "bfloat16": (lambda *x: loss(*x, kind="signed").float(), lambda b, n, m: qkv(b, n, m, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in DYNAMIC if "groups" not in name),
        *((name, "inductor") for name in ("sinh", "groups, bias, normalizer")),
    ],
)
def test_forward_and_backward_with_dynamic_shapes(name, backend):
    function, inputs = DYNAMIC[name]
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    with WITHOUT_RECOMPILATION:
        for size in SIZES:
            x = inputs(*size)
            leaves = [t for t in x if t.requires_grad]
            value, expected = compiled(*x), function(*x)
            same(value, expected)
            same(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves))


INSIDE = {
    "grad": lambda x, t: grad(loss, (0, 1, 2))(*x),
    "vjp": lambda x, t: vjp(loss, *x)[1](torch.ones((), dtype=torch.float64)),
    "jvp": lambda x, t: jvp(loss, tuple(x), tuple(t)),
    "grad(jvp)": lambda x, t: grad(lambda *y: jvp(loss, y, tuple(t))[1], (0, 1, 2))(*x),
    "vmap": lambda x, t: vmap(lambda *y: attention(*y, kind="signed"), in_dims=(0, 0, None))(x[0], x[1], x[2][0]),
    "vmap(grad)": lambda x, t: vmap(grad(loss, (0, 1, 2)))(*x),
    "hessian": lambda x, t: hessian(loss, (0, 1, 2))(*x),
    "jvp(grad)": lambda x, t: jvp(grad(loss, (0, 1, 2)), tuple(x), tuple(t)),
}
FORWARD_OVER_REVERSE = ("hessian", "jvp(grad)")


def inputs_and_tangents(batch, n, m):
    x = [t.detach() for t in qkv(batch, n, m)]
    return x, [torch.randn_like(t) for t in x]


def compile_plain_hessian():
    def f(x):
        return hessian(lambda a, b: (a * b).square().sum(), (0, 1))(x, x)

    torch.compile(f, fullgraph=True, backend="aot_eager")(torch.randn(2, 3))


@pytest.mark.parametrize("name", INSIDE)
def test_transform_inside(name):
    x, t = inputs_and_tangents(1, 4, 3)
    compiled = torch.compile(INSIDE[name], fullgraph=True, backend="aot_eager")
    if name == "hessian":
        with as_plain_tensors(compile_plain_hessian):
            value = compiled(x, t)
    else:
        value = compiled(x, t)
    same(value, INSIDE[name](x, t))


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in INSIDE if name not in FORWARD_OVER_REVERSE),
        *((name, "inductor") for name in ("grad", "jvp")),
    ],
)
def test_transform_inside_with_dynamic_shapes(name, backend):
    compiled = torch.compile(INSIDE[name], fullgraph=True, dynamic=True, backend=backend)
    with WITHOUT_RECOMPILATION:
        for size in SIZES[:2]:
            x, t = inputs_and_tangents(*size)
            same(compiled(x, t), INSIDE[name](x, t))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORWARD_OVER_REVERSE)
def test_forward_over_reverse_inside_with_inductor_and_dynamic_shapes(name):
    compiled = torch.compile(INSIDE[name], fullgraph=True, dynamic=True, backend="inductor")
    for size in SIZES[:2]:
        x, t = inputs_and_tangents(*size)
        same(compiled(x, t), INSIDE[name](x, t))


def dense(q, k, v):
    return torch.softmax(q @ k.mT, -1) @ v


def dense_loss(q, k, v):
    return dense(q, k, v).sin().sum()


@pytest.mark.parametrize("function", [loss, dense_loss])
def test_forward_over_reverse_inside_is_compiled_for_each_size(function):
    """PyTorch fixes the sizes there, for its own operators too: right values, one compilation a size."""

    def product(x, t):
        return jvp(grad(function, (0, 1, 2)), tuple(x), tuple(t))

    compiled = torch.compile(product, fullgraph=True, dynamic=True, backend="aot_eager")
    x, t = inputs_and_tangents(*SIZES[0])
    same(compiled(x, t), product(x, t))
    with WITHOUT_RECOMPILATION, pytest.raises(torch._dynamo.exc.RecompileError, match="size mismatch at index"):
        compiled(*inputs_and_tangents(*SIZES[1]))


def dropped(q, k, v):
    return attention(q, k, v, dropout_p=0.4, is_causal=True, kind="signed")


def dropped_and_recomputed(q, k, v):
    return checkpoint(dropped, q, k, v, use_reentrant=False)


@pytest.mark.parametrize("function", [dropped, dropped_and_recomputed])
def test_dropout_is_that_of_eager_mode(function):
    x = qkv()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    outputs = []
    for f in (compiled, dropped):
        torch.manual_seed(3)
        outputs.append(f(*x))
    same(*outputs)
    same(*(torch.autograd.grad(out.sin().sum(), x) for out in outputs))
    assert not torch.equal(compiled(*x), compiled(*x)), "one mask was compiled in"


@pytest.mark.parametrize("function", [dropped, dropped_and_recomputed])
def test_dropout_mask_is_the_same_in_forward_and_backward_under_inductor(function):
    x = qkv()
    compiled = torch.compile(function, fullgraph=True, backend="inductor")
    out, other = compiled(*x), compiled(*x)
    assert not torch.equal(out, other)
    cotangent = torch.randn_like(out)
    (grad_value,) = torch.autograd.grad(out, x[2], cotangent)
    # The output is linear in the values with the weights of one mask, those of its transpose in the gradient.
    same((grad_value * x[2]).sum(), (cotangent * out).sum())
    assert not torch.isclose((grad_value * x[2]).sum(), (cotangent * other).sum())


def penalty(*x):
    """Its gradient runs the reverse rule of the backward."""
    return sum(g.square().sum() for g in torch.autograd.grad(loss(*x), x, create_graph=True))


def directional(*x):
    """Its gradient runs the reverse rule of the JVP."""
    return jvp(loss, x, tuple(t.detach().flip(-1) for t in x))[1]


def penalty_of_penalty(*x):
    """Its gradient runs the reverse rule of the double backward, which compiled autograd does not look into."""
    return sum(g.square().sum() for g in torch.autograd.grad(penalty(*x), x, create_graph=True))


@pytest.mark.filterwarnings("ignore:torch_rescaled.*plain-tensor path")
@pytest.mark.parametrize(
    ("function", "node", "backend"),
    [
        (loss, "RescaledAttentionBackward", "aot_eager"),
        (lambda *x: dropped(*x).sin().sum(), "RescaledAttentionBackward", "aot_eager"),
        (penalty, "RescaledAttentionDoubleBackward", "aot_eager"),
        (directional, "RescaledAttentionJvpBackward", "aot_eager"),
        pytest.param(penalty_of_penalty, "run_non_traceable_cpp_in_eager", "aot_eager", marks=pytest.mark.slow),
        pytest.param(penalty, "RescaledAttentionDoubleBackward", "inductor", marks=pytest.mark.slow),
    ],
    ids=["first order", "dropout", "reverse over reverse", "reverse over forward", "third order", "inductor"],
)
def test_compiled_autograd(function, node, backend):
    captured = []

    def compiler(graph):
        captured.append(graph.code)
        return torch.compile(graph, backend=backend, dynamic=True)

    for size in SIZES[:2]:
        x = qkv(*size)
        results = []
        for _ in range(2):
            torch.manual_seed(4)
            results.append(function(*x))
        expected = torch.autograd.grad(results[0], x)
        with torch._dynamo.compiled_autograd._enable(compiler):
            results[1].backward()
        same([t.grad for t in x], expected)
    assert counters["compiled_autograd"]["captures"] == len(captured) == 1, "the second size was captured anew, or none was"
    assert node in captured[0]


def test_checkpoint_under_compile():
    def f(*x):
        return checkpoint(loss, *x, use_reentrant=False)

    x = qkv()
    same(torch.autograd.grad(torch.compile(f, backend="aot_eager")(*x), x), torch.autograd.grad(loss(*x), x))


# What PyTorch refuses: docs/derivatives.md lists these.


def test_create_graph_through_a_compiled_region_is_refused():
    x = qkv()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (g,) = torch.autograd.grad(compiled(*x), x[0], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        g.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_duals_from_outside_a_compiled_graph_are_refused(backend):
    x = [t.detach() for t in qkv()]
    compiled = torch.compile(lambda *a: attention(*a).sin(), fullgraph=True, backend=backend)
    compiled(*x)
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="no forward-mode tangents from outside a compiled graph"),
    ):
        dual = forward_ad.make_dual(x[0], torch.ones_like(x[0]))
        compiled(dual, x[1], x[2])


FROM_OUTSIDE = {
    "jvp": lambda f, x: jvp(f, tuple(x), tuple(x)),
    "grad": lambda f, x: grad(lambda *y: f(*y).sum())(*x),
    "vmap": lambda f, x: vmap(f)(*x),
}


@pytest.mark.parametrize("name", FROM_OUTSIDE)
@pytest.mark.parametrize("function", [attention, dense])
def test_transform_of_a_compiled_function_is_refused_or_runs_eagerly(function, name):
    x = [t.detach() for t in qkv()]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    message = rf"Calling torch\.func\.{name}\(compiled_fn\) function from eager mode is not supported"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        FROM_OUTSIDE[name](compiled, x)
    torch._dynamo.reset()
    broken = torch.compile(function, backend="aot_eager")
    same(FROM_OUTSIDE[name](broken, x), FROM_OUTSIDE[name](function, x))


@pytest.mark.parametrize("function", [loss, dense_loss])
def test_compiled_autograd_of_dual_tensors_is_refused(function):
    x = qkv()
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, t.detach().flip(-1)) for t in x]
        tangent = forward_ad.unpack_dual(function(*duals)).tangent
    with (
        torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")),
        pytest.raises(NotImplementedError, match="compiled_args not implemented: torch::autograd::Identity"),
    ):
        tangent.backward()
