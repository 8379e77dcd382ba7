# SPDX-License-Identifier: BSD-3-Clause
"""The package as a user meets it: docstring examples, refusals to load, layer, build information."""

import doctest
import io
import re
import sys

import pytest
import torch

import torch_rescaled
from torch_rescaled import _library


@pytest.mark.parametrize("name", ["functional", "_library", "nn.attention"])
def test_docstring_examples(name):
    module = sys.modules[f"torch_rescaled.{name}"]
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The loader as a package installed in an empty folder."""
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))
    return tmp_path / "libtorch_rescaled.so"


def test_a_missing_library_is_refused(elsewhere):
    with pytest.raises(ImportError, match=re.escape(f"expected its operator library at {elsewhere}, found none; build it with")):
        _library._load()


def test_another_library_that_is_missing_is_refused(elsewhere, monkeypatch):
    other = elsewhere.with_name("other.so")
    monkeypatch.setenv("TORCH_RESCALED_LIBRARY", str(other))
    with pytest.raises(
        ImportError, match=re.escape(f"expected an operator library at {other}, which TORCH_RESCALED_LIBRARY names")
    ):
        _library._load()


def test_another_library_is_loaded_in_place_of_the_packages_own(elsewhere, monkeypatch):
    elsewhere.with_name("other.so").write_bytes(b"not a library")
    monkeypatch.setenv("TORCH_RESCALED_LIBRARY", str(elsewhere.with_name("other.so")))
    with pytest.raises(ImportError, match=r"does not load with torch .*other\.so"):
        _library._load()


def test_a_library_that_does_not_load_is_refused(elsewhere):
    elsewhere.write_bytes(b"not a library")
    message = rf"does not load with torch {re.escape(torch.__version__)}; it serves only the torch release .* \(.*{elsewhere}"
    with pytest.raises(ImportError, match=message):
        _library._load()


def test_a_library_of_another_torch_is_refused(monkeypatch):
    monkeypatch.setattr(_library, "build_info", lambda: {"torch": "1.0.0"})
    here = torch.__version__.partition("+")[0]
    message = rf"was built for torch 1\.0\.0, but this is torch {re.escape(here)}; build it again in this environment"
    with pytest.raises(ImportError, match=message):
        _library._load()


def test_build_info_and_backend():
    info = torch_rescaled.build_info()
    assert info["torch"] == torch.__version__.partition("+")[0]
    assert torch_rescaled.backend(torch.empty(1, 1)) == f"cpu:{info['cpu_isa']}"
    assert torch_rescaled.backend(torch.empty(1, 1, device="meta")) == "meta"
    with pytest.raises(ValueError, match="expected kind"):
        torch_rescaled.backend(torch.empty(1, 1), kind="relu")


@pytest.mark.parametrize("kind", ["exp", "cosh", "sinh", "signed"])
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_layer_is_attention_between_projections(kind, kv_heads):
    layer = torch_rescaled.nn.RescaledAttention(24, 4, kv_heads=kv_heads, kind=kind)
    x, y = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    q, k, v = layer.project(x, y)
    assert q.shape == (2, 4, 5, 6) and k.shape == v.shape == (2, kv_heads or 4, 7, 6)
    group = 4 // (kv_heads or 4)
    heads = torch_rescaled.attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), kind=kind)
    torch.testing.assert_close(layer(x, y), layer.output(heads.transpose(1, 2).flatten(2)))


def test_exp_layer_is_multihead_attention():
    reference = torch.nn.MultiheadAttention(24, 4, batch_first=True)
    layer = torch_rescaled.nn.RescaledAttention(24, 4)
    with torch.no_grad():
        for part, weight, bias in zip(
            (layer.query, layer.key, layer.value), reference.in_proj_weight.chunk(3), reference.in_proj_bias.chunk(3), strict=True
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        layer.output.load_state_dict(reference.out_proj.state_dict())
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(layer(x), reference(x, x, x, need_weights=False)[0])


def test_layer_modes():
    layer = torch_rescaled.nn.RescaledAttention(24, 4, kv_heads=2, dropout=0.5, is_causal=True, kind="signed")
    x = torch.randn(2, 6, 24)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    changed = x.clone()
    changed[:, 4:] = 0
    torch.testing.assert_close(layer(x)[:, :4], layer(changed)[:, :4])
    scripted = torch.jit.script(layer)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    assert torch.equal(torch.jit.load(buffer)(x), layer(x))
    assert "kind='signed'" in repr(layer)
