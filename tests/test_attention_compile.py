# SPDX-License-Identifier: BSD-3-Clause
"""torch.compile: full graphs, dynamic shapes, transforms inside, compiled autograd; what upstream refuses is refused by message."""

import pytest
import torch
import torch._dynamo.compiled_autograd
from torch.func import grad, hessian, jvp
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from torch_rescaled import attention

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*is not a leaf Tensor")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def qkv(n=6, m=7, dtype=torch.float64):
    return [torch.randn(2, 2, rows, 4, dtype=dtype, requires_grad=True) for rows in (n, m, m)]


def same(a, b):
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        torch.testing.assert_close(x, y)


def loss(q, k, v, kind="cosh"):
    return attention(q, k, v, is_causal=True, kind=kind).sin().sum()


@pytest.mark.parametrize(("kind", "backend"), [("exp", "aot_eager"), ("sinh", "aot_eager"), ("sinh", "inductor")])
def test_forward_and_backward_with_dynamic_shapes(kind, backend):
    compiled = torch.compile(lambda *x: loss(*x, kind=kind), fullgraph=True, dynamic=True, backend=backend)
    for n in (5, 8, 11):
        x = qkv(n, n + 2)
        same(torch.autograd.grad(compiled(*x), x), torch.autograd.grad(loss(*x, kind=kind), x))


INSIDE = {
    "grad": lambda x, t: grad(loss, (0, 1, 2))(*x),
    "jvp": lambda x, t: jvp(loss, tuple(x), tuple(t)),
    "hessian": lambda x, t: hessian(loss)(*x),
    "jvp(grad)": lambda x, t: jvp(grad(loss), tuple(x), tuple(t)),
}


@pytest.mark.parametrize("name", INSIDE)
def test_transform_inside(name):
    x = [t.detach() for t in qkv(4, 3)]
    t = [torch.randn_like(a) for a in x]
    same(torch.compile(INSIDE[name], fullgraph=True, backend="aot_eager")(x, t), INSIDE[name](x, t))


@pytest.mark.parametrize("second", [False, True])
def test_compiled_autograd(second):
    def value(*x):
        if not second:
            return loss(*x)
        return sum(g.square().sum() for g in torch.autograd.grad(loss(*x), x, create_graph=True))

    x = qkv()
    expected = torch.autograd.grad(value(*x), x)
    result = value(*x)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", dynamic=True)):
        result.backward()
    same([t.grad for t in x], expected)


def test_checkpoint_under_compile():
    def f(*x):
        return checkpoint(loss, *x, use_reentrant=False)

    x = qkv()
    same(torch.autograd.grad(torch.compile(f, backend="aot_eager")(*x), x), torch.autograd.grad(loss(*x), x))


def test_create_graph_through_a_compiled_region_is_refused():
    x = qkv()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (g,) = torch.autograd.grad(compiled(*x), x[0], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        g.sum().backward()


def test_duals_from_outside_a_compiled_graph_are_refused():
    x = [t.detach() for t in qkv()]
    compiled = torch.compile(lambda *a: attention(*a).sin(), fullgraph=True, backend="aot_eager")
    compiled(*x)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="no forward-mode tangents from outside a compiled graph"),
    ):
        dual = torch.autograd.forward_ad.make_dual(x[0], torch.ones_like(x[0]))
        compiled(dual, x[1], x[2])
