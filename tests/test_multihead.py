# SPDX-License-Identifier: BSD-3-Clause
"""nn.MultiheadAttention beside torch's: the same for kind exp, by hand for the others, and never softmax in their place."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_rescaled.nn import MultiheadAttention

E, H, N, M, B = 12, 3, 5, 7, 2
SIZES = {"dtype": torch.float64}
CONSTRUCTORS = {
    "default": {},
    "no bias": {"bias": False},
    "batch_first": {"batch_first": True},
    "other sizes": {"kdim": 4, "vdim": 9},
    "other sizes, no bias": {"kdim": 4, "bias": False, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "bias_kv and zero_attn": {"add_bias_kv": True, "add_zero_attn": True},
}
BOOLEAN_PADDING = torch.zeros(B, M, dtype=torch.bool)
BOOLEAN_PADDING[0, 5:] = True
BOOLEAN = torch.ones(N, M, dtype=torch.bool).triu(2)
GENERATOR = torch.Generator().manual_seed(5)
FLOATING = torch.randn(N, M, dtype=torch.float64, generator=GENERATOR)
MATRICES = torch.randn(B * H, N, M, dtype=torch.float64, generator=GENERATOR)
MASKS = {
    "none": {},
    "boolean padding": {"key_padding_mask": BOOLEAN_PADDING},
    "floating padding": {"key_padding_mask": torch.randn(B, M, dtype=torch.float64, generator=GENERATOR)},
    "boolean": {"attn_mask": BOOLEAN},
    "boolean, a matrix each": {"attn_mask": MATRICES > 1},
    "both boolean": {"attn_mask": BOOLEAN, "key_padding_mask": BOOLEAN_PADDING},
    "floating, a matrix each": {"attn_mask": MATRICES},
    "both floating": {"attn_mask": FLOATING, "key_padding_mask": torch.randn(B, M, dtype=torch.float64, generator=GENERATOR)},
}


def pair(kind="exp", **settings):
    """torch's layer and ours, with the same parameters, biases too."""
    theirs = nn.MultiheadAttention(E, H, **settings, **SIZES)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = MultiheadAttention(E, H, kind=kind, **settings, **SIZES)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(layer, self_attention=False):
    def new(length, size):
        shape = (B, length, size) if layer.batch_first else (length, B, size)
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    query = new(N, E)
    return (query,) * 3 if self_attention else (query, new(M, layer.kdim), new(M, layer.vdim))


@pytest.mark.parametrize("settings", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_parameters_are_torchs(settings):
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(E, H, **settings)
    torch.manual_seed(3)
    ours = MultiheadAttention(E, H, **settings, kind="cosh")
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    torch.manual_seed(4)
    theirs._reset_parameters()
    torch.manual_seed(4)
    ours._reset_parameters()
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    theirs.load_state_dict(MultiheadAttention(E, H, **settings).state_dict())


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("settings", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_kind_exp_is_torchs_layer(settings, masks, need_weights):
    theirs, ours = pair(**settings)
    args = inputs(ours)
    for average in (True, False) if need_weights else (True,):
        results = []
        for layer in (theirs, ours):
            output, weights = layer(*args, **masks, need_weights=need_weights, average_attn_weights=average)
            grads = torch.autograd.grad(output.sin().sum(), [*args, *layer.parameters()])
            results.append((output, weights, *grads))
        torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("settings", [{}, {"kdim": 4}], ids=["same sizes", "other sizes"])
def test_unbatched(settings, need_weights):
    theirs, ours = pair(**settings, batch_first=True)
    args = [x[0] for x in inputs(ours)]
    masks = {"key_padding_mask": BOOLEAN_PADDING[0], "attn_mask": MATRICES[:H] > 1}
    for average in (True, False):
        options = {"need_weights": need_weights, "average_attn_weights": average}
        torch.testing.assert_close(ours(*args, **masks, **options), theirs(*args, **masks, **options))


@pytest.mark.parametrize("batch_first", [False, True])
def test_self_attention(batch_first):
    theirs, ours = pair(batch_first=batch_first)
    args = inputs(ours, self_attention=True)
    torch.testing.assert_close(ours(*args), theirs(*args))
    assert ours(*args, need_weights=False)[0].shape == args[0].shape


def by_hand(layer, query, key, value, log_weight):
    """Output and weights of self-attention-sized layers, sequence first, [B, H, N, M] log weights."""
    projected = []
    for x, weight, bias in zip((query, key, value), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True):
        projected.append((x @ weight.T + bias).view(x.shape[0], B, H, E // H).permute(1, 2, 0, 3))
    q, k, v = projected
    scores, u = q @ k.mT / (E // H) ** 0.5, log_weight.exp()
    numerator = u * {"exp": scores.exp(), "cosh": scores.cosh()}.get(layer.kind, scores.sinh())
    denominator = u * {"exp": scores.exp(), "sinh": scores.sinh()}.get(layer.kind, scores.cosh())
    weights = numerator / denominator.sum(-1, keepdim=True)
    return (weights @ v).permute(2, 0, 1, 3).flatten(2) @ layer.out_proj.weight.T + layer.out_proj.bias, weights


@pytest.mark.parametrize("kind", ["exp", "cosh", "sinh", "signed"])
def test_every_kind_by_hand(kind):
    _, ours = pair(kind)
    args = inputs(ours)
    padding = torch.zeros(B, 1, 1, M, dtype=torch.float64).masked_fill(BOOLEAN_PADDING[:, None, None], -torch.inf)
    expected, expected_weights = by_hand(ours, *args, MATRICES.view(B, H, N, M) + padding)
    masks = {"attn_mask": MATRICES, "key_padding_mask": BOOLEAN_PADDING}  # of two dtypes
    output, none = ours(*args, **masks, need_weights=False)
    assert none is None
    torch.testing.assert_close(output, expected)
    output, weights = ours(*args, **masks, average_attn_weights=False)
    torch.testing.assert_close((output, weights), (expected, expected_weights))
    torch.testing.assert_close(ours(*args, **masks)[1], expected_weights.mean(1))


@pytest.mark.parametrize("settings", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=["", "keys that follow"])
@pytest.mark.parametrize("padding", [None, BOOLEAN_PADDING], ids=["", "padding"])
def test_causal(settings, padding):
    theirs, ours = pair(**settings)
    args = inputs(ours)
    causal = torch.ones(N, M, dtype=torch.bool).triu(1)
    # Without weights torch's own hint masks the keys that follow.
    expected = theirs(*args, attn_mask=causal, is_causal=True, key_padding_mask=padding)[0]
    for mask in (causal, None):
        for need_weights in (False, True):
            output, _ = ours(*args, attn_mask=mask, is_causal=True, key_padding_mask=padding, need_weights=need_weights)
            torch.testing.assert_close(output, expected)


def test_a_query_without_keys():
    """Zeros before the output projection, in output, weights and gradients."""
    _, ours = pair("sinh")
    args = inputs(ours)
    mask = BOOLEAN.index_fill(0, torch.tensor([2]), True)
    for need_weights in (False, True):
        output, weights = ours(*args, attn_mask=mask, need_weights=need_weights)
        torch.testing.assert_close(output[2], ours.out_proj.bias.expand(B, E))
        assert weights is None or weights[:, 2].eq(0).all()
        grads = torch.autograd.grad(output.square().sum(), args)
        assert all(grad.isfinite().all() for grad in grads) and grads[0][2].eq(0).all() and grads[0][1].ne(0).all()


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_in_training_alone(need_weights):
    layer = MultiheadAttention(E, H, dropout=0.5, kind="cosh", **SIZES)
    args = [x[:, :1].repeat(1, 2000, 1) for x in inputs(layer)]  # the same problem 2000 times
    output, weights = layer(*args, need_weights=need_weights, average_attn_weights=False)
    if need_weights:
        assert 0.45 < weights.eq(0).double().mean() < 0.55
    exact, exact_weights = layer.eval()(*args, need_weights=need_weights, average_attn_weights=False)
    assert exact.std(1).max() < 1e-12 < 1e-3 < output.std(1).min()
    torch.testing.assert_close(output.mean(1), exact[:, 0], atol=0.05, rtol=0)
    assert not need_weights or exact_weights.ne(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    _, ours = pair("cosh")
    args = [x.detach() for x in inputs(ours)]
    truth = ours(*args)
    ours.float()
    with torch.autocast("cpu", dtype):
        results = [ours(*(x.float() for x in args), need_weights=need_weights) for need_weights in (False, True)]
    ours.to(dtype)
    results += [ours(*(x.to(dtype) for x in args), need_weights=need_weights) for need_weights in (False, True)]
    for output, weights in results:
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), truth[0], atol=0.03, rtol=0.03)
        assert weights is None or torch.allclose(weights.double(), truth[1], atol=0.01)


def encoder_layer(kind, **settings):
    layer = nn.TransformerEncoderLayer(E, 4, 16, dropout=0.0, batch_first=True, **settings, **SIZES)
    layer.self_attn = MultiheadAttention(E, 4, batch_first=True, kind=kind, **SIZES)
    nn.init.normal_(layer.self_attn.in_proj_weight)
    return layer.eval()


@pytest.mark.parametrize("kind", ["exp", "cosh"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_torchs_inference_path_is_not_taken(kind, padded, stacked, monkeypatch):
    """In evaluation without gradients an encoder layer of torch's computes softmax without calling self_attn, if it may."""
    model = encoder_layer(kind)
    if stacked:
        with pytest.warns(UserWarning, match="use_nested_tensor is False because encoder_layer.self_attn._qkv_same_embed_dim"):
            model = nn.TransformerEncoder(model, 2).eval()
    calls = []
    forward = MultiheadAttention.forward
    monkeypatch.setattr(MultiheadAttention, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    x = torch.randn(B, N, E, dtype=torch.float64)
    padding = torch.arange(N).expand(B, N) >= torch.tensor([[N], [3]]) if padded else None

    expected = model(x, src_key_padding_mask=padding)
    n_calls = len(calls)
    with torch.no_grad():
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), expected)
    assert n_calls == len(calls) - n_calls == (2 if stacked else 1)

    # What would happen without the flag: the test sees what it is about.
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module._qkv_same_embed_dim = True
    with torch.no_grad():
        softmax = model(x, src_key_padding_mask=padding)
    assert len(calls) == 2 * n_calls
    assert (softmax - expected)[0].abs().max() > 1e-3 or kind == "exp"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_refused():
    layer = encoder_layer("cosh")
    with pytest.warns(UserWarning, match="use_nested_tensor is False"):
        encoder = nn.TransformerEncoder(layer, 1).eval()
    encoder.use_nested_tensor = True
    padding = torch.arange(N).expand(B, N) >= torch.tensor([[N], [3]])
    with (
        torch.no_grad(),
        pytest.raises(NotImplementedError, match=r"expected dense tensors, got a nested one.*use_nested"),
    ):
        encoder(torch.randn(B, N, E, dtype=torch.float64), src_key_padding_mask=padding)


@pytest.mark.parametrize("need_weights", [False, True])
def test_second_derivatives(need_weights):
    layer = MultiheadAttention(4, 2, kind="cosh", add_bias_kv=True, **SIZES)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(3, 1, 4, dtype=torch.float64)
    mask = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def function(mask, *parameters):
        keywords = {"need_weights": need_weights, "attn_mask": mask}
        results = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, x, x), keywords)
        return results if need_weights else results[0]

    assert torch.autograd.gradcheck(function, (mask, *parameters))
    assert torch.autograd.gradgradcheck(function, (mask, *parameters))


@pytest.mark.parametrize("need_weights", [False, True])
def test_compiles_in_one_graph_exports_and_scripts(need_weights):
    layer = MultiheadAttention(E, H, kind="signed", batch_first=True, add_bias_kv=True, **SIZES).eval()
    args = tuple(x.detach() for x in inputs(layer))
    masks = {"key_padding_mask": BOOLEAN_PADDING, "need_weights": need_weights, "attn_mask": FLOATING}
    expected = layer(*args, **masks)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args, **masks), expected)
    torch.testing.assert_close(torch.jit.script(layer)(*args, **masks), expected)

    length = torch.export.Dim("length", min=3, max=64)
    dynamic = {"query": None, "key": {1: length}, "value": {1: length}, "need_weights": None, "key_padding_mask": {1: length}}
    masks = {"key_padding_mask": BOOLEAN_PADDING, "need_weights": need_weights}
    program = torch.export.export(layer, args, masks, dynamic_shapes=dynamic)
    longer = (args[0], *(torch.randn(B, 11, E, dtype=torch.float64) for _ in range(2)))
    masks["key_padding_mask"] = torch.arange(11).expand(B, 11) >= torch.tensor([[11], [6]])
    torch.testing.assert_close(program.module()(*longer, **masks), layer(*longer, **masks))


def test_an_encoder_layer_scripts():
    layer = encoder_layer("cosh")
    x = torch.randn(B, N, E, dtype=torch.float64)
    scripted = torch.jit.script(layer)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), layer(x))


def test_copies_and_files_keep_the_kind(tmp_path):
    _, layer = pair("signed")
    args = inputs(layer)
    torch.save(layer, tmp_path / "layer.pt")
    for other in (copy.deepcopy(layer), torch.load(tmp_path / "layer.pt", weights_only=False)):
        assert other.kind == "signed"
        torch.testing.assert_close(other(*args), layer(*args))


def test_on_the_meta_device():
    layer = MultiheadAttention(E, H, device="meta", dtype=torch.bfloat16, kind="cosh")
    x = torch.empty(N, B, E, device="meta", dtype=torch.bfloat16)
    output, weights = layer(x, x, x)
    assert output.shape == (N, B, E) and weights.shape == (B, N, N) and weights.dtype == torch.bfloat16


def test_bad_settings():
    for arguments, message in [
        (dict(embed_dim=12, num_heads=5), "expected embed_dim divisible by num_heads, got 12 and 5"),
        (dict(embed_dim=12, num_heads=0), "expected embed_dim divisible by num_heads, got 12 and 0"),
        (dict(embed_dim=12, num_heads=3, dropout=1.0), "expected dropout in [0, 1), got 1.0"),
        (dict(embed_dim=12, num_heads=3, kind="tanh"), "expected kind 'exp', 'cosh', 'sinh' or 'signed', got 'tanh'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(f"MultiheadAttention: {message}")):
            MultiheadAttention(**arguments)


@pytest.mark.parametrize(
    ("shapes", "masks", "message"),
    [
        ([(5, 2, 11), (7, 2, 4), (7, 2, 12)], {}, "expected query of 2 or 3 dimensions, the last of size 12, got [5, 2, 11]"),
        ([(12,), (7, 2, 4), (7, 2, 12)], {}, "expected query of 2 or 3 dimensions, the last of size 12, got [12]"),
        ([(5, 2, 12), (7, 4), (7, 12)], {}, "expected key of shape [5, 2, 4] (of any length) to go with the query, got [7, 4]"),
        ([(5, 2, 12), (7, 3, 4), (7, 3, 12)], {}, "expected key of shape [7, 2, 4] (of any length)"),
        ([(5, 2, 12), (7, 2, 12), (7, 2, 12)], {}, "expected key of shape [7, 2, 4] (of any length)"),
        ([(5, 2, 12), (7, 2, 4), (6, 2, 12)], {}, "expected value of shape [7, 2, 12] to go with the key, got [6, 2, 12]"),
        (None, {"attn_mask": torch.zeros(7, 5)}, "expected attn_mask of shape [5, 7] or [6, 5, 7], got [7, 5]"),
        (None, {"attn_mask": torch.zeros(2, 5, 7)}, "expected attn_mask of shape [5, 7] or [6, 5, 7], got [2, 5, 7]"),
        (None, {"key_padding_mask": torch.zeros(7, 2)}, "expected key_padding_mask of shape [2, 7], got [7, 2]"),
    ],
)
def test_bad_shapes(shapes, masks, message):
    layer = MultiheadAttention(E, H, kdim=4)
    args = [torch.zeros(shape) for shape in shapes or [(5, 2, 12), (7, 2, 4), (7, 2, 12)]]
    with pytest.raises(ValueError, match=re.escape(f"MultiheadAttention: {message}")):
        layer(*args, **masks)


def test_integer_masks_are_refused():
    layer = MultiheadAttention(E, H)
    x = torch.zeros(N, B, E)
    with pytest.raises(TypeError, match=r"MultiheadAttention: expected attn_mask to be boolean or floating, got torch\.uint8"):
        layer(x, x, x, attn_mask=torch.zeros(N, N, dtype=torch.uint8))


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs/layers.md").read_text(), flags=re.DOTALL)
    own = [block for block in blocks if "transformers" not in block]
    assert own
    names = {"__name__": "page"}
    for block in own:
        exec(compile(block, "layers.md", "exec"), names)
