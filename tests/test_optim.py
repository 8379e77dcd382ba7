# SPDX-License-Identifier: BSD-3-Clause
"""optim.Newton: products and directions against dense ones, randomness, resuming, groups, and what is told."""

import copy
import itertools
import re

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import torch_rescaled
from torch_rescaled.optim import Curvature, Newton


class Attend(nn.Module):
    """A head of cosh attention with a readout: 126 parameters."""

    def __init__(self, dropout=0.0, kind="cosh"):
        super().__init__()
        self.qkv, self.out, self.drop, self.kind = nn.Linear(6, 12), nn.Linear(4, 3, bias=False), nn.Dropout(dropout), kind

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(self.drop(torch_rescaled.attention(q, k, v, kind=self.kind))).flatten(0, -2)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = Attend().double()
    x, y = torch.randn(2, 7, 6, dtype=torch.float64), torch.randint(0, 3, (14,))

    def closure():
        outputs = model(x)
        return cross_entropy(outputs, y), outputs

    return model, closure, x, y


def dense(model, x, y, kind):
    """The Hessian, or the Gauss-Newton matrix, of all parameters, by torch.func."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs(flat):
        parts = flat.split([s.numel() for s in shapes])
        return functional_call(model, {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}, (x,))

    if kind == "hessian":
        return torch.func.hessian(lambda f: cross_entropy(outputs(f), y))(flat)
    J = torch.func.jacrev(outputs)(flat).flatten(0, 1)
    o = outputs(flat)
    H = torch.func.hessian(lambda o: cross_entropy(o, y))(o).view(o.numel(), o.numel())
    return J.T @ H @ J


def flatten(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_products_are_those_of_the_dense_matrix(problem, kind):
    model, closure, x, y = problem
    parameters = list(model.parameters())
    curvature = Curvature(closure, parameters, kind)
    versions = [p._version for p in parameters]
    v = [torch.randn_like(p) for p in parameters]
    expected = dense(model, x, y, kind) @ flatten(v)
    for _ in range(2):  # on the same graph
        torch.testing.assert_close(flatten(curvature.product(v)), expected, rtol=1e-10, atol=1e-12)
    assert [p._version for p in parameters] == versions and all(p.is_leaf for p in parameters)


@pytest.mark.parametrize("preconditioner", ["none", "diagonal", "kronecker"])
@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_the_direction_is_that_of_the_dense_damped_solve(problem, kind, preconditioner):
    model, closure, x, y = problem
    damping = 1.0  # more than the Hessian's most negative eigenvalue
    matrix = dense(model, x, y, kind)
    gradient = flatten(torch.autograd.grad(closure()[0], list(model.parameters())))
    expected = -torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), gradient)
    optimizer = Newton(
        [{"params": list(model.parameters()), "method": "newton"}], damping=damping, curvature=kind, max_cg_iterations=200,
        cg_tolerance=0.0, preconditioner=preconditioner,
    )  # fmt: skip
    before = flatten(model.parameters())
    optimizer.step(closure)
    direction = flatten([optimizer.state[p]["direction"] for p in model.parameters()])
    torch.testing.assert_close(direction, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    # Backtracking may prefer an earlier iterate, whose loss is lower by rounding.
    torch.testing.assert_close(flatten(model.parameters()) - before, direction, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flatten([p.grad for p in model.parameters()]), gradient)


def test_a_quadratic_takes_one_step():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(8, 8, generator=g, dtype=torch.float64)
    A, b = A @ A.T + torch.eye(8, dtype=torch.float64), torch.randn(8, 1, generator=g, dtype=torch.float64)
    x = nn.Parameter(torch.zeros(8, 1, dtype=torch.float64))
    optimizer = Newton([x], damping=0.0, curvature="hessian", cg_tolerance=0.0, preconditioner="none")
    optimizer.step(lambda: (x.T @ A @ x / 2 - b.T @ x).squeeze())
    torch.testing.assert_close(x.detach(), torch.linalg.solve(A, b), rtol=1e-8, atol=1e-8)


def test_negative_curvature_is_a_way_down():
    x = nn.Parameter(torch.tensor([[0.5, 0.01]], dtype=torch.float64))

    def closure():
        return x[0, 0] ** 2 - x[0, 1] ** 2 + x[0, 1] ** 4

    optimizer = Newton([x], damping=1e-3, curvature="hessian")
    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert all(b <= a for a, b in itertools.pairwise(losses)) and losses[-1] < -0.2499


@pytest.mark.parametrize("preconditioner", ["diagonal", "kronecker"])
@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_training_descends_and_repeats_bit_for_bit(problem, kind, preconditioner):
    model, _, x, y = problem
    other = copy.deepcopy(model)

    def make(model, damping):
        return Newton(Newton.parameter_groups(model), damping=damping, curvature=kind, preconditioner=preconditioner)

    def train(model, steps, optimizer=None):
        optimizer = optimizer or make(model, 0.1)
        losses = []
        for _ in range(steps):

            def closure():
                outputs = model(x)
                return cross_entropy(outputs, y), outputs

            losses.append(optimizer.step(closure).item())
        return losses, optimizer

    whole, _ = train(model, 8)
    assert whole[-1] < 0.8 * whole[0] and all(b < a for a, b in itertools.pairwise(whole))
    first, optimizer = train(other, 4)
    resumed = make(other, 77.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert first + train(other, 4, resumed)[0] == whole
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("preconditioner", ["diagonal", "kronecker"])
def test_half_precision_parameters_resume_bit_for_bit(preconditioner):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 5).bfloat16(), torch.randn(9, 6, dtype=torch.bfloat16)
    other = copy.deepcopy(model)

    def train(model, steps, state=None):
        optimizer = Newton(model.parameters(), curvature="hessian", preconditioner=preconditioner)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        for _ in range(steps):
            optimizer.step(lambda: (model(x).float() - 1).square().mean())
        return optimizer.state_dict()

    train(model, 4)
    train(other, 2, train(other, 2))
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


def test_heads_of_attention_have_blocks_of_their_own():
    model = nn.ModuleList(
        [torch_rescaled.nn.RescaledAttention(16, 4, kv_heads=2), nn.MultiheadAttention(6, 3), nn.Embedding(5, 16)]
    )
    groups = Newton.parameter_groups(model)
    blocks = {id(p): group["blocks"] for group in groups if group["method"] == "newton" for p in group["params"]}
    attention, multihead, table = model
    expected = [
        (attention.query, (0, 4)), (attention.key, (0, 2)), (attention.value, (0, 2)), (attention.output, (1, 4)), (multihead.out_proj, (1, 3))
    ]  # fmt: skip
    assert blocks == {id(layer.weight): cut for layer, cut in expected} | {id(multihead.in_proj_weight): (0, 9)}
    with_table = Newton.parameter_groups(model, embeddings="newton")
    assert any(p is table.weight for group in with_table if group["method"] == "newton" for p in group["params"])
    x = torch.randn(2, 7, 16)
    optimizer = Newton(Newton.parameter_groups(attention), curvature="hessian", preconditioner="kronecker")
    losses = [optimizer.step(lambda: (attention(x) - x).square().mean()).item() for _ in range(4)]
    assert losses[-1] < losses[0]
    shapes = {name: optimizer.state[attention.output.weight][name].shape for name in ("rows", "columns", "trace")}
    assert shapes == {"rows": (4, 16, 16), "columns": (4, 4, 4), "trace": (4,)}


def test_dropout_masks_agree_within_a_step_and_randomness_goes_on_as_after_one_call():
    torch.manual_seed(0)
    model = Attend(dropout=0.4).double()
    x, y = torch.randn(3, 5, 6, dtype=torch.float64), torch.randint(0, 3, (15,))
    seen = []

    def closure():
        outputs = model(x)
        seen.append(outputs.detach().clone())
        return cross_entropy(outputs, y), outputs

    torch.manual_seed(5)
    closure()
    after_one_call = torch.get_rng_state()
    torch.manual_seed(5)
    curvature = Curvature(closure, list(model.parameters()), "gauss_newton")
    curvature.product([torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)) for p in model.parameters()])
    curvature.loss_again()
    assert len(seen) == 4 and all(torch.equal(s, seen[0]) for s in seen)
    torch.manual_seed(5)
    Newton(model.parameters()).step(closure)
    assert torch.equal(torch.get_rng_state(), after_one_call)


def test_buffers_change_once_a_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    x, y = torch.randn(20, 4), torch.randn(20, 2)
    expected = copy.deepcopy(model)
    expected(x)

    def closure():
        outputs = model(x)
        return (outputs - y).square().mean(), outputs

    Newton(model.parameters(), model=model).step(closure)
    for (name, b), c in zip(model.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(b, c), name


def test_micro_batches_are_their_batch(problem):
    model, closure, x, y = problem
    other = copy.deepcopy(model)

    def part(i):
        def closure():
            outputs = other(x[i : i + 1])
            return cross_entropy(outputs, y.view(2, 7)[i]), outputs

        return closure

    options = {"damping": 0.5, "preconditioner": "none"}
    whole, parts = Newton(model.parameters(), **options), Newton(other.parameters(), **options)
    torch.testing.assert_close(whole.step(closure), parts.step([part(0), part(1)]))
    torch.testing.assert_close(flatten(model.parameters()), flatten(other.parameters()), rtol=1e-9, atol=1e-9)


def test_steps_without_a_closure_take_the_gradient_as_it_is(problem):
    model, closure, x, y = problem
    optimizer = Newton(
        [{"params": list(model.parameters()), "method": "newton"}], damping=1.0, cg_tolerance=0.0, max_cg_iterations=200
    )
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = flatten(model.parameters())
    optimizer.step()  # what makes the state of an optimizer that is about to be loaded
    assert torch.equal(flatten(model.parameters()), before) and len(optimizer.state) == 3
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.update_curvature(closure)
    closure()[0].backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    gradient, rng = flatten([p.grad for p in model.parameters()]), torch.get_rng_state()
    assert optimizer.step() is None
    assert torch.equal(torch.get_rng_state(), rng)
    step = flatten(model.parameters()) - before
    with torch.no_grad():
        for p, b in zip(model.parameters(), before.split([p.numel() for p in model.parameters()]), strict=True):
            p.copy_(b.view_as(p))
    matrix = dense(model, x, y, "gauss_newton")
    expected = -0.5 * torch.linalg.solve(matrix + torch.eye(len(matrix), dtype=matrix.dtype), gradient)
    torch.testing.assert_close(step, expected, rtol=1e-6, atol=1e-9)


def test_vectors_and_embeddings_take_adamw_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    groups = Newton.parameter_groups(model)
    assert [(g["method"], [p.shape for p in g["params"]]) for g in groups] == [
        ("newton", [(9, 4)]), ("adamw", [(9, 4), (9,)])
    ]  # fmt: skip
    x = torch.randint(0, 9, (30,))
    other = copy.deepcopy(model)

    def closure():
        outputs = model(x)
        return cross_entropy(outputs, x), outputs

    optimizer = Newton(groups, adamw_lr=0.01, weight_decay=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert [g["lr"] for g in optimizer.param_groups] == [1.0, 0.01]
    cross_entropy(other(x), x).backward()
    torch.optim.AdamW([other[0].weight, other[1].bias], lr=0.01, weight_decay=0.1).step()
    optimizer.step(closure)
    assert torch.equal(model[0].weight, other[0].weight) and torch.equal(model[1].bias, other[1].bias)
    assert not torch.equal(model[1].weight, other[1].weight)


def test_a_loss_that_is_not_finite_changes_nothing_but_the_damping(problem):
    model, closure, *_ = problem
    optimizer = Newton(model.parameters(), damping=0.5)
    optimizer.step(closure)
    before, damping = flatten(model.parameters()), optimizer.param_groups[0]["damping"]
    state = copy.deepcopy(optimizer.state_dict()["state"])

    def broken():
        loss, outputs = closure()
        return loss * float("nan"), outputs

    assert optimizer.step(broken).isnan()
    assert torch.equal(flatten(model.parameters()), before) and optimizer.param_groups[0]["damping"] == 4 * damping
    for i, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            assert torch.equal(value, state[i][name])


def square(model):
    x = torch.ones(2, 4)
    return lambda: model(x).square().mean()


MESSAGES = [
    (lambda m: Newton(m.parameters()).step(square(m)), TypeError, "to return (loss, outputs) for curvature 'gauss_newton'"),
    (lambda m: Newton(m.parameters(), curvature="hessian").step(lambda: 1.0), TypeError, "a loss of one floating-point number, or (loss, outputs), got float"),
    (lambda m: Newton(m.parameters(), curvature="hessian").step(lambda: m(torch.ones(2, 4))), TypeError, "got a tensor of shape [2, 3]"),
    (lambda m: Newton(m.parameters()).step(), RuntimeError, "expected a closure, or update_curvature(closure) before, got neither"),
    (lambda m: Newton([*m.parameters(), nn.Parameter(torch.ones(2, 2))], curvature="hessian").step(square(m)), ValueError, "got none for parameter 1 of shape [2, 2]"),
    (lambda m: Newton(m.parameters(), curvature="hessian").step(lambda: (lambda loss: (loss.backward(), loss)[1])(square(m)())), RuntimeError, "it must not call backward()"),
    (lambda m: Newton([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))]), TypeError, "got torch.complex64"),
    (lambda m: Newton(m.parameters(), curvature="fisher"), ValueError, "expected curvature 'gauss_newton' or 'hessian', got 'fisher'"),
    (lambda m: Newton(m.parameters(), preconditioner="lu"), ValueError, "expected preconditioner 'diagonal', 'kronecker', 'none', got 'lu'"),
    (lambda m: Newton([{"params": [m.weight], "blocks": (0, 2)}]), ValueError, "expected blocks (axis 0 or 1, a count that divides the axis) of a matrix, got (0, 2) for shape [3, 4]"),
    (lambda m: Newton.parameter_groups(m, embeddings="sgd"), ValueError, "expected embeddings 'adamw' or 'newton', got 'sgd'"),
    (lambda m: Curvature(square(m), list(m.parameters()), "fisher"), ValueError, "expected curvature 'gauss_newton' or 'hessian', got 'fisher'"),
    (lambda m: Newton(m.parameters(), damping=-1.0), ValueError, "expected 0 <= damping <= inf, got -1.0"),
    (lambda m: Newton(m.parameters(), max_cg_iterations=0), ValueError, "expected max_cg_iterations >= 1, got 0"),
    (lambda m: Newton([{"params": m.parameters(), "method": "sgd"}]), ValueError, "expected method 'newton' or 'adamw' of a parameter group, got 'sgd'"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(MESSAGES)))
def test_bad_use_is_told(case):
    call, error, message = MESSAGES[case]
    with pytest.raises(error, match=re.escape(message)):
        call(nn.Linear(4, 3))


def test_a_gradient_scaler_is_refused():
    model = nn.Linear(4, 3)
    optimizer = Newton(model.parameters(), curvature="hessian")
    optimizer.update_curvature(square(model))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(square(model)()).backward()
    with pytest.raises(RuntimeError, match="expected no GradScaler, got one"):
        scaler.step(optimizer)
