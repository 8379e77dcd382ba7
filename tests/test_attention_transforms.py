# SPDX-License-Identifier: BSD-3-Clause
"""torch.func: every composition to second order, vmap of each, against the same transform of the dense definition."""

import oracle
import pytest
import torch
from helpers import KINDS
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

from torch_rescaled import attention, attention_with_normalizer

ALL = (0, 1, 2, 3)
pytestmark = [
    pytest.mark.usefixtures("on_device"),
    pytest.mark.filterwarnings("ignore:torch_rescaled.*plain-tensor path"),
]


@pytest.fixture(params=KINDS)
def problem(request, on_device):
    kind = request.param
    x = [torch.randn(s, dtype=torch.float64) for s in ((2, 2, 4, 3), (2, 1, 5, 3), (2, 1, 5, 2), (1, 2, 4, 5))]

    def ours(q, k, v, b):
        return sum(t.sin().sum() for t in attention_with_normalizer(q, k, v, b, is_causal=True, kind=kind))

    def dense(q, k, v, b):
        return sum(t.sin().sum() for t in oracle.core(q, k, v, b, causal=True, kind=kind))

    return ours, dense, x, [torch.randn_like(t) for t in x]


def same(a, b):
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


TRANSFORMS = {
    "grad": lambda f, x, t: grad(f, ALL)(*x),
    "vjp": lambda f, x, t: vjp(f, *x)[1](torch.ones((), dtype=torch.float64)),
    "jvp": lambda f, x, t: jvp(f, tuple(x), tuple(t)),
    "hessian": lambda f, x, t: hessian(f, ALL)(*x),
    "jacfwd(jacrev)": lambda f, x, t: jacfwd(jacrev(f, ALL), ALL)(*x),
    "jacrev(jacfwd)": lambda f, x, t: jacrev(jacfwd(f, ALL), ALL)(*x),
    "jacrev(jacrev)": lambda f, x, t: jacrev(jacrev(f, ALL), ALL)(*x),
    "jvp(grad)": lambda f, x, t: jvp(grad(f, ALL), tuple(x), tuple(t)),
    "vjp(grad)": lambda f, x, t: vjp(grad(f, ALL), *x)[1](tuple(t)),
    "jvp(jvp)": lambda f, x, t: jvp(lambda *y: jvp(f, y, tuple(t))[1], tuple(x), tuple(t)),
    "grad(jvp)": lambda f, x, t: grad(lambda *y: jvp(f, y, tuple(t))[1], ALL)(*x),
    "grad(hessian)": lambda f, x, t: grad(lambda q: hessian(lambda p: f(p, *x[1:]))(q).sin().sum())(x[0]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_composition(name, problem):
    ours, dense, x, t = problem
    same(TRANSFORMS[name](ours, x, t), TRANSFORMS[name](dense, x, t))


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n != "grad(hessian)"])
@pytest.mark.parametrize("in_dims", [(0, None, None, None), (None, 1, 0, None), (0, 0, 0, 0), (None, None, None, 2)], ids=str)
def test_vmap_of(name, in_dims, problem):
    ours, dense, x, t = problem
    stacked = [x if d is None else torch.stack([x, 0.5 * x, -x], d) for x, d in zip(x, in_dims, strict=True)]

    def mapped(f):
        return vmap(lambda *y: TRANSFORMS[name](f, list(y), t), in_dims=in_dims)(*stacked)

    same(mapped(ours), mapped(dense))


def test_chunked_jacobian(problem):
    ours, dense, x, _ = problem
    same(jacrev(grad(ours), chunk_size=3)(*x), jacrev(grad(dense))(*x))


def dense_attention(q, k, v, mask, kind):
    output, balance, _ = oracle.core(q, k, v, None, mask, kind="sinh" if kind == "signed" else kind)
    return output / balance.unsqueeze(-1) if kind == "sinh" else output


@pytest.fixture(params=[*KINDS, "signed"])
def masked_problem(request, on_device):
    """The public operator under a boolean mask; scores are positive, away from the pole of sinh."""
    kind = request.param
    x = [torch.rand(s, dtype=torch.float64) + 0.2 for s in ((2, 4, 3), (1, 5, 3), (1, 5, 2))]
    masks = torch.rand(3, 2, 4, 5) > 0.4
    masks[..., 0] = True
    masks[1, :, 2] = False  # a row without keys
    return (
        lambda mask: lambda *y: attention(*y, mask, kind=kind).sin().sum(),
        # The definition divides by the balance, 0 in a row without keys: those rows are cut out of the mask here.
        lambda mask: lambda *y: (dense_attention(*y, mask | ~mask.any(-1, True), kind) * mask.any(-1, True)).sin().sum(),
        x,
        [torch.randn_like(t) for t in x],
        masks,
    )


MASKED = {
    "grad": lambda f, x, t: grad(f, (0, 1, 2))(*x),
    "jvp": lambda f, x, t: jvp(f, tuple(x), tuple(t)),
    "hessian": lambda f, x, t: hessian(f, (0, 1, 2))(*x),
    "jvp(grad)": lambda f, x, t: jvp(grad(f, (0, 1, 2)), tuple(x), tuple(t)),
    "grad(jvp)": lambda f, x, t: grad(lambda *y: jvp(f, y, tuple(t))[1], (0, 1, 2))(*x),
    "jvp(jvp)": lambda f, x, t: jvp(lambda *y: jvp(f, y, tuple(t))[1], tuple(x), tuple(t)),
}


@pytest.mark.parametrize("name", MASKED)
def test_public_kinds_under_a_mask(name, masked_problem):
    ours, dense, x, t, masks = masked_problem
    for mask in masks:
        same(MASKED[name](ours(mask), x, t), MASKED[name](dense(mask), x, t))


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)], ids=["query", "mask", "query, mask"])
def test_vmap_with_a_mask(name, in_dims, masked_problem):
    ours, dense, x, t, masks = masked_problem
    query = x[0] if in_dims[0] is None else torch.stack([x[0], 0.5 * x[0], x[0].flip(0)])
    mask = masks[1] if in_dims[1] is None else masks

    def mapped(f):
        return vmap(lambda q, m: MASKED[name](f(m), [q, *x[1:]], t), in_dims=in_dims)(query, mask)

    same(mapped(ours), mapped(dense))


RANDOM = {
    "batched": lambda x, q: attention(q, q, q, dropout_p=0.5),
    "unbatched": lambda x, q: attention(x, x, x, dropout_p=0.5) + q,
    "normalizer, unbatched": lambda x, q: attention_with_normalizer(x, x, x, dropout_p=0.5)[0] + q,
}


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("name", RANDOM)
def test_vmap_with_dropout(name, randomness):
    q = torch.randn(2, 16, 8).expand(4, 2, 16, 8)
    out = vmap(lambda q_: RANDOM[name](q[0], q_), randomness=randomness)(q)
    equal = [torch.equal(out[0], out[i]) for i in range(1, 4)]
    assert all(equal) if randomness == "same" else not any(equal)


@pytest.mark.parametrize("name", RANDOM)
def test_vmap_without_a_choice_of_randomness_is_refused(name):
    q = torch.randn(4, 2, 16, 8)
    with pytest.raises(RuntimeError, match="vmap: called random operation while in randomness error mode"):
        vmap(lambda q_: RANDOM[name](q[0], q_))(q)


def test_jacrev_uses_one_dropout_mask():
    q, k, v = (torch.randn(2, 6, 4, dtype=torch.float64) for _ in range(3))

    def f(v):
        torch.manual_seed(1)
        return attention(q, k, v, dropout_p=0.4)

    jacobian = jacrev(f)(v)
    torch.testing.assert_close(torch.einsum("...bmd,bmd->...", jacobian, v), f(v))  # linear in V
    assert (jacobian[0, :, :, 1] == 0).all()  # matrices of the batch do not mix
