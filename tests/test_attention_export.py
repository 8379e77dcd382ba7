# SPDX-License-Identifier: BSD-3-Clause
"""torch.export, run_decompositions, AOTInductor, TorchScript: saved, loaded, equal."""

import io

import pytest
import torch

import torch_rescaled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Model(torch.nn.Module):
    def __init__(self, kind="signed"):
        super().__init__()
        self.layer = torch_rescaled.nn.RescaledAttention(16, 4, kv_heads=2, kind=kind, is_causal=True)

    def forward(self, x):
        return self.layer(x).tanh()


@pytest.fixture
def model_and_input():
    return Model().eval(), torch.randn(2, 9, 16)


def test_export_with_dynamic_length(model_and_input):
    model, x = model_and_input
    exported = torch.export.export(model, (x,), dynamic_shapes=({1: torch.export.Dim("length", min=2, max=512)},))
    longer = torch.randn(2, 30, 16)
    torch.testing.assert_close(exported.module()(longer), model(longer))
    decomposed = exported.run_decompositions()
    torch.testing.assert_close(decomposed.module()(longer), model(longer))
    assert any("torch_rescaled._attention_forward" in str(node.target) for node in decomposed.graph.nodes)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.export.load(buffer).module()(longer), model(longer))


def test_aot_inductor_package(model_and_input, tmp_path):
    model, x = model_and_input
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(torch.export.export(model, (x,)), package_path=str(tmp_path / "model.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), model(x))


def test_script_and_trace(model_and_input):
    model, x = model_and_input
    for module in (torch.jit.script(model), torch.jit.trace(model, x)):
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        y = x.clone().requires_grad_()
        torch.testing.assert_close(loaded(y), model(y))
        torch.testing.assert_close(torch.autograd.grad(loaded(y).sum(), y), torch.autograd.grad(model(y).sum(), y))
