# SPDX-License-Identifier: BSD-3-Clause
"""replace_attention: the same parameters, the same numbers for kind exp, and nothing left behind in silence."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torch_rescaled.nn import MultiheadAttention, RescaledAttention, replace_attention

E, H, N, B = 8, 2, 5, 3
SIZES = {"batch_first": True, "dtype": torch.float64}
PROTOTYPE = "ignore:The PyTorch API of nested tensors is in prototype stage"  # torch's own warning, of its own stack of encoders


def encoder_layer(**settings):
    return nn.TransformerEncoderLayer(E, H, 12, dropout=0.0, **settings, **SIZES)


def inputs():
    return torch.randn(B, N, E, dtype=torch.float64)


def attention_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}


@pytest.mark.filterwarnings(PROTOTYPE)
def test_a_whole_transformer():
    model = nn.Transformer(E, H, 2, 1, 12, dropout=0.0, **SIZES)
    before, parameters = copy.deepcopy(model), dict(model.named_parameters())
    report = replace_attention(model)
    names = ("encoder.layers.0.self_attn", "encoder.layers.1.self_attn")
    names += ("decoder.layers.0.self_attn", "decoder.layers.0.multihead_attn")
    assert (report.kind, report.replaced, report.left, report.without_nested_tensors) == ("exp", names, (), ("encoder",))
    assert set(attention_layers(model)) == set(names)
    assert all(type(module) is MultiheadAttention for module in attention_layers(model).values())
    assert list(parameters) == [name for name, _ in model.named_parameters()]
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())

    args, causal = (inputs(), inputs()), nn.Transformer.generate_square_subsequent_mask(N, dtype=torch.float64)
    padding = torch.arange(N).expand(B, N) >= torch.tensor([[N], [3], [4]])
    masks = {"tgt_mask": causal, "memory_key_padding_mask": padding}
    for model_, before_ in ((model, before), (model.eval(), before.eval())):
        torch.testing.assert_close(model_(*args, **masks), before_(*args, **masks))
        with torch.no_grad():  # a padded source: torch's encoder packs it into a nested tensor, ours not any more
            padded = {**masks, "src_key_padding_mask": padding}
            torch.testing.assert_close(model_(*args, **padded), before_(*args, **padded))


def test_another_kind_is_another_model_in_every_mode():
    model = nn.TransformerEncoder(encoder_layer(), 2).eval()
    x = inputs()
    softmax = model(x)
    replace_attention(model, kind="signed")
    assert (model(x) - softmax).abs().max() > 1e-2
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x.clone().requires_grad_()))


def test_second_derivatives_where_torchs_are_missing():
    layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, activation="gelu", **SIZES)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def gradient():
        return torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)[0]

    with pytest.raises(RuntimeError, match="flash_attention_for_cpu_backward"):
        gradient().square().sum().backward()
    replace_attention(layer, kind="cosh")
    gradient().square().sum().backward()
    assert x.grad.ne(0).all()
    names, parameters = zip(*layer.self_attn.named_parameters(), strict=True)

    def function(x, *parameters):
        state = {f"self_attn.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        return torch.func.functional_call(layer, state, x)

    assert torch.autograd.gradgradcheck(function, (x, *parameters))


def test_an_optimizer_made_before_goes_on():
    model, x = encoder_layer(), inputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    replace_attention(model, kind="cosh")
    before = copy.deepcopy(model.state_dict())
    model(x).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_hooks_modes_and_settings_are_kept():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(E, H, dropout=0.25, add_zero_attn=True, **SIZES).eval()}).train(True)
    model["a"].eval().out_proj.weight.requires_grad_(False)
    seen = []
    handle = model["a"].register_forward_hook(lambda module, args, output: seen.append(module))
    replace_attention(model, kind="signed")
    layer, x = model["a"], inputs()
    assert (layer.training, layer.dropout, layer.add_zero_attn, layer.batch_first) == (False, 0.25, True, True)
    assert not layer.out_proj.weight.requires_grad and layer.in_proj_weight.requires_grad
    layer(x, x, x)
    assert seen == [layer]
    handle.remove()
    layer(x, x, x)
    assert seen == [layer]


def test_shared_layers_stay_shared():
    layer, block = nn.MultiheadAttention(E, H, **SIZES), encoder_layer()
    model = nn.ModuleDict({"a": layer, "b": nn.ModuleList([layer]), "c": block, "d": block})
    report = replace_attention(model)
    assert report.replaced == ("a", "b.0", "c.self_attn", "d.self_attn")
    assert model["a"] is model["b"][0] and type(model["a"]) is MultiheadAttention
    assert model["c"] is block is model["d"]


class OwnForward(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        raise AssertionError


def patched():
    layer = nn.MultiheadAttention(E, H)
    layer.forward = layer.forward
    return layer


def compiled_in_place():
    layer = nn.MultiheadAttention(E, H)
    layer.compile(backend="eager")
    return layer


def reason_for(layer):
    """Why `layer` was left; it is the same one afterwards."""
    model = nn.ModuleDict({"layer": layer})
    before = dict(model.named_modules())
    report = replace_attention(model)
    assert report.replaced == () and dict(model.named_modules()) == before
    ((_, reason),) = report.left
    assert reason in str(report)
    return reason


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OwnForward(E, H), "test_replace.OwnForward"),
        (lambda: torch.ao.nn.quantizable.MultiheadAttention(E, H), "torch.ao.nn.quantizable.modules.activation.Multi"),
        (lambda: parametrizations.weight_norm(nn.MultiheadAttention(E, H), "in_proj_weight"), "ParametrizedMultihead"),
        (lambda: nn.MultiheadAttention(E, H, dropout=1.0), r"expected dropout in [0, 1), got 1.0"),
        (patched, "one with its own forward"),
        (compiled_in_place, "one with its own _compiled_call_impl"),
        (lambda: torch.compile(nn.MultiheadAttention(E, H), backend="eager"), "compiled by torch.compile"),
        (lambda: torch.jit.script(nn.MultiheadAttention(E, H)), "compiled by TorchScript"),
        (lambda: MultiheadAttention(E, H, kind="cosh"), "of this package already, kind 'cosh'"),
    ],
    ids=["subclass", "quantizable", "parametrized", "dropout 1", "patched", "compiled in place", "compiled", "scripted", "ours"],
)
def test_what_is_left_and_why(make, reason):
    assert reason in reason_for(make())


def test_a_compiled_model_is_replaced_inside():
    model, x = encoder_layer(), inputs()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    replace_attention(compiled, kind="cosh")
    assert type(model.self_attn) is MultiheadAttention
    torch.testing.assert_close(compiled(x), model(x))


def test_the_report_reads_well():
    model = nn.TransformerEncoder(encoder_layer(), 1)
    model.layers.append(encoder_layer())
    model.layers[1].self_attn = MultiheadAttention(E, H, **SIZES)
    assert str(replace_attention(model, kind="cosh")).splitlines() == [
        "replaced by MultiheadAttention of kind 'cosh': 1",
        "  layers.0.self_attn",
        "left as they are: 1",
        "  layers.1.self_attn: of this package already, kind 'exp'",
        "use_nested_tensor switched off: 1",
        "  the model itself",
    ]


def test_nothing_to_replace():
    report = replace_attention(nn.Sequential(nn.Linear(2, 2), RescaledAttention(E, H)))
    assert report.replaced == report.left == report.without_nested_tensors == ()
    assert str(report) == "replaced by MultiheadAttention of kind 'exp': 0"


def test_refusals_change_nothing():
    layer, model = nn.MultiheadAttention(E, H), encoder_layer()
    with pytest.raises(ValueError, match=r"replace_attention: expected a model that contains .*got one itself; .*from_torch"):
        replace_attention(layer)
    with pytest.raises(ValueError, match="replace_attention: expected kind 'exp', 'cosh', 'sinh' or 'signed', got 'tanh'"):
        replace_attention(model, kind="tanh")
    assert type(model.self_attn) is nn.MultiheadAttention
    ours = MultiheadAttention.from_torch(layer, kind="cosh")
    assert ours.in_proj_weight is layer.in_proj_weight and type(layer) is nn.MultiheadAttention and layer._qkv_same_embed_dim
