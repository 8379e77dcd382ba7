# SPDX-License-Identifier: BSD-3-Clause
"""RescaledAttention in the ways models use it."""

import pytest
import torch
from helpers import as_plain_tensors, export_grouped_heads

from torch_rescaled.nn import RescaledAttention


def by_hand(layer, query, key, value, attn_mask=None):
    """The layer from its parameters and plain tensors, kind exp or signed, a head at a time."""
    group = layer.num_heads // layer.kv_heads
    heads = []
    for head in range(layer.num_heads):
        rows = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        kv_rows = slice(head // group * layer.head_dim, (head // group + 1) * layer.head_dim)
        q = query @ layer.query.weight[rows].T + layer.query.bias[rows]
        k = key @ layer.key.weight[kv_rows].T + layer.key.bias[kv_rows]
        v = value @ layer.value.weight[kv_rows].T + layer.value.bias[kv_rows]
        scores = q @ k.mT * (layer.head_dim**-0.5 if layer.scale is None else layer.scale)
        keep = torch.ones(scores.shape, dtype=torch.bool) if attn_mask is None else attn_mask[:, head]
        if layer.is_causal:
            keep = keep & torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if layer.kind == "exp":
            weights = scores.exp() * keep / (scores.exp() * keep).sum(-1, keepdim=True)
        else:
            weights = scores.sinh() * keep / (scores.cosh() * keep).sum(-1, keepdim=True)
        heads.append(weights @ v)
    return torch.cat(heads, -1) @ layer.output.weight.T + layer.output.bias


@pytest.mark.parametrize("kind", ["exp", "signed"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("is_causal", [False, True])
def test_cross_attention_with_a_mask(kind, kv_heads, is_causal):
    layer = RescaledAttention(16, 4, kv_heads=kv_heads, kind=kind, is_causal=is_causal, scale=0.7, dtype=torch.float64)
    for bias in (layer.query.bias, layer.key.bias, layer.value.bias, layer.output.bias):
        torch.nn.init.normal_(bias)
    query, key, value = (torch.randn(2, length, 16, dtype=torch.float64) for length in (5, 7, 7))
    mask = torch.rand(2, 4, 5, 7) < 0.7
    mask[..., 0] = True
    torch.testing.assert_close(layer(query, key, value, mask), by_hand(layer, query, key, value, mask))
    torch.testing.assert_close(layer(query, key), by_hand(layer, query, key, key))


def test_rotation_between_the_steps():
    """Turning queries and keys by the same orthogonal matrix changes nothing; turning the queries alone does."""
    layer = RescaledAttention(16, 2, dtype=torch.float64)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = layer.project(x)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    torch.testing.assert_close(layer.attend(q @ rotation, k @ rotation, v), layer(x))
    assert (layer.attend(q @ rotation, k, v) - layer(x)).abs().max() > 1e-3


def test_second_derivatives_with_respect_to_the_parameters():
    layer = RescaledAttention(4, 2, kv_heads=1, kind="signed", is_causal=True, dtype=torch.float64)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(*parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradgradcheck(function, parameters)


def test_compiles_in_one_graph_and_exports():
    layer = RescaledAttention(16, 4, kv_heads=2, is_causal=True, kind="cosh").eval()
    x = torch.randn(2, 6, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    length = torch.export.Dim("length", min=2, max=64)
    with as_plain_tensors(export_grouped_heads):
        program = torch.export.export(layer, (x,), dynamic_shapes={"query": {1: length}})
    longer = torch.randn(2, 11, 16)
    torch.testing.assert_close(program.module()(longer), layer(longer))


def test_state_survives_saving(tmp_path):
    layer, other = (RescaledAttention(16, 4, kv_heads=2) for _ in range(2))
    x = torch.randn(2, 5, 16)
    assert not torch.equal(layer(x), other(x))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(layer(x), other(x))


def test_without_biases_and_on_the_meta_device():
    assert not any("bias" in name for name, _ in RescaledAttention(16, 4, bias=False).named_parameters())
    layer = RescaledAttention(16, 4, device="meta", dtype=torch.bfloat16)
    out = layer(torch.empty(2, 5, 16, device="meta", dtype=torch.bfloat16))
    assert out.shape == (2, 5, 16) and out.dtype == torch.bfloat16
