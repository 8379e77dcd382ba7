# SPDX-License-Identifier: BSD-3-Clause
"""torch.export, run_decompositions, AOTInductor, TorchScript: saved, loaded, equal, at other sizes too."""

import io

import pytest
import torch
from helpers import as_plain_tensors, export_grouped_heads
from torch import Tensor
from torch.export import Dim

import torch_rescaled
from torch_rescaled import attention_with_normalizer

# Warnings of torch's own code: torch.export.save pickles, and AOTInductor's lowerings call, what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`torch._prims_common.check` is deprecated:FutureWarning",
)


class Model(torch.nn.Module):
    """The layer alone, causal, grouped."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = torch_rescaled.nn.RescaledAttention(16, 4, kv_heads=2, kind="signed", is_causal=True, dropout=dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x, attn_mask=mask).tanh()


class Normalized(Model):
    """All three outputs."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.layer.project(x)
        output, balance, log_normalizer = attention_with_normalizer(q, k, v, bias, is_causal=True, enable_gqa=True, kind="sinh")
        return output * log_normalizer.tanh().unsqueeze(-1) + balance.unsqueeze(-1)


def boolean(length):
    return (torch.rand(length, length) > 0.3) | torch.eye(length, dtype=torch.bool)


def floating(length):
    return torch.randn(4, length, length)


LENGTH, BATCH = Dim("length", min=2, max=512), Dim("batch", min=2, max=64)
# model, mask of a length, its dynamic dimensions
PROBLEMS = {"mask": (Model, boolean, {0: LENGTH, 1: LENGTH}), "bias, normalizer": (Normalized, floating, {1: LENGTH, 2: LENGTH})}


def exported(name):
    """The exported program at one size, its model, and inputs of another size."""
    model, mask, dynamic = PROBLEMS[name]
    model = model().eval()
    program = torch.export.export(model, (torch.randn(3, 9, 16), mask(9)), dynamic_shapes=({0: BATCH, 1: LENGTH}, dynamic))
    return program, model, (torch.randn(5, 30, 16), mask(30))


def saved_and_loaded(save, load, what):
    buffer = io.BytesIO()
    save(what, buffer)
    buffer.seek(0)
    return load(buffer)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11, when it loads what it saved
@pytest.mark.parametrize("name", PROBLEMS)
def test_export_with_dynamic_batch_and_length(name):
    with as_plain_tensors(export_grouped_heads):
        program, model, x = exported(name)
    torch.testing.assert_close(program.module()(*x), model(*x))
    decomposed = program.run_decompositions()
    torch.testing.assert_close(decomposed.module()(*x), model(*x))
    assert any("torch_rescaled._attention_forward" in str(node.target) for node in decomposed.graph.nodes)
    loaded = saved_and_loaded(torch.export.save, torch.export.load, program)
    torch.testing.assert_close(loaded.module()(*x), model(*x))


def test_exported_training_draws_dropout():
    x = (torch.randn(3, 9, 16), boolean(9))
    model = Model(dropout=0.5)
    program = torch.export.export(model, x).module()
    torch.manual_seed(1)
    dropped = program(*x)
    torch.manual_seed(1)
    torch.testing.assert_close(dropped, model(*x))
    assert not torch.equal(program(*x), dropped)


@pytest.mark.parametrize("name", ["bias, normalizer", pytest.param("mask", marks=pytest.mark.slow)])
def test_aot_inductor_package_with_dynamic_batch_and_length(name, tmp_path):
    with as_plain_tensors(export_grouped_heads):
        program, model, x = exported(name)
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(loaded(*x), model(*x))


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_script_and_trace(name, how):
    model, mask, _ = PROBLEMS[name]
    # In float64: the executor's own derivatives round differently, which second derivatives of float32 show.
    model, mask = model().eval().double(), mask(9)
    mask = mask.double() if mask.is_floating_point() else mask
    x = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    module = torch.jit.script(model) if how == "script" else torch.jit.trace(model, (x.detach(), mask))
    loaded = saved_and_loaded(torch.jit.save, torch.jit.load, module)

    def derivatives(f):
        out = f(x, mask)
        (first,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        return out, first, torch.autograd.grad(first.square().sum(), x)[0]

    expected = derivatives(model)
    for _ in range(3):  # the executor profiles, then specializes
        torch.testing.assert_close(derivatives(loaded), expected)


def test_scripted_training_draws_dropout_as_eager_mode_does():
    model = Model(dropout=0.5)
    loaded = saved_and_loaded(torch.jit.save, torch.jit.load, torch.jit.script(model))
    x, mask = torch.randn(2, 9, 16, requires_grad=True), boolean(9)

    def value_and_gradient(f):
        torch.manual_seed(2)
        out = f(x, mask)
        return out, torch.autograd.grad(out.sin().sum(), x)[0]

    for _ in range(3):
        torch.testing.assert_close(value_and_gradient(loaded), value_and_gradient(model))
    assert not torch.equal(loaded(x, mask), loaded(x, mask))
    torch.testing.assert_close(loaded.eval()(x, mask), model.eval()(x, mask))
