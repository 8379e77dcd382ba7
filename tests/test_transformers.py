# SPDX-License-Identifier: BSD-3-Clause
"""Hugging Face models with attn_implementation="rescaled_...": tiny random ones, nothing is downloaded."""

import inspect
import os
import re
import sys
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="needs transformers (pip install torch_rescaled[transformers])")

from torch_rescaled.integrations.transformers import register  # noqa: E402

NAMES = register()
VOCABULARY, LENGTH = 64, 9
SIZES = {"vocab_size": VOCABULARY, "initializer_range": 0.4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "gpt2": lambda **more: transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **{**GPT2, **more})),
    "llama": lambda **more: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **LLAMA, **more)),
    "bert": lambda **more: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **ENCODER, **{**NO_DROPOUT, **more})),
    "mistral": lambda **more: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, **LLAMA, sliding_window=3, **more)  # shorter than the batch
    ),
}


def make(family, **settings):
    torch.manual_seed(0)
    return MODELS[family](**settings).double().eval()


def batch(padding):
    ids = torch.randint(3, VOCABULARY, (2, LENGTH))
    mask = torch.ones_like(ids)
    if padding != "none":
        mask[0, slice(0, 4) if padding == "left" else slice(5, None)] = 0
    return ids, mask


def by_hand(kind):
    """An attention in plain tensors, and transformers' eager masks (0 and finfo.min) for it."""

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        keep = attention_mask > -1 if attention_mask is not None else torch.ones_like(scores, dtype=torch.bool)
        numerator = {"exp": scores.exp(), "cosh": scores.cosh()}.get(kind, scores.sinh()) * keep
        denominator = {"exp": scores.exp(), "sinh": scores.sinh()}.get(kind, scores.cosh()) * keep
        total = denominator.sum(-1, keepdim=True)
        return (numerator / total.where(keep.any(-1, keepdim=True), 1) @ value).transpose(1, 2), None

    name = f"by_hand_{kind}"
    transformers.AttentionInterface.register(name, attention)
    transformers.AttentionMaskInterface.register(name, transformers.masking_utils.eager_mask)
    return name


def results(model, name, ids, mask):
    """Logits of the real tokens, and the gradient of the loss with respect to every parameter."""
    model.set_attn_implementation(name)
    assert model.config._attn_implementation == name
    labels = ids.masked_fill(mask == 0, -100)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return output.logits[mask.bool()], *torch.autograd.grad(output.loss, parameters, allow_unused=True)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", MODELS)
def test_exp_is_sdpa(family, padding):
    model, inputs = make(family), batch(padding)
    torch.testing.assert_close(results(model, "rescaled_exp", *inputs), results(model, "sdpa", *inputs))


@pytest.mark.parametrize("kind", ["exp", "cosh", "sinh", "signed"])
@pytest.mark.parametrize("family", MODELS)
def test_every_kind_by_hand(family, kind):
    model, inputs = make(family), batch("left")
    expected = results(model, by_hand(kind), *inputs)
    # A sum of sinh comes close to zero somewhere: the pole amplifies rounding.
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if kind == "sinh" else {}
    torch.testing.assert_close(results(model, f"rescaled_{kind}", *inputs), expected, **tolerance)
    softmax = results(model, "sdpa", *inputs)[0]
    assert kind == "exp" or (softmax - expected[0]).abs().max() > 1e-2


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", ["rescaled_exp", "rescaled_signed"])
def test_padding_is_not_read(family, padding, name):
    model, (ids, mask) = make(family), batch(padding)
    model.set_attn_implementation(name)
    others = torch.where(mask == 1, ids, ids % 60 + 3)
    assert not torch.equal(ids, others)
    first, second = (model(input_ids=x, attention_mask=mask).logits[mask.bool()] for x in (ids, others))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", ["rescaled_exp", "rescaled_cosh"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_generation_with_a_cache(family, name):
    model, (ids, mask) = make(family), batch("left")
    # Without these a random model may end early, or repeat a token whose logit lies far above the others'.
    settings = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }

    def generate(name, use_cache):
        model.set_attn_implementation(name)
        output = model.generate(ids, attention_mask=mask, use_cache=use_cache, **settings)
        return output.sequences, torch.stack(output.logits)

    expected = generate(name, use_cache=False)
    assert expected[0].shape == (2, LENGTH + 6)
    torch.testing.assert_close(generate(name, use_cache=True), expected)
    if name == "rescaled_exp":
        torch.testing.assert_close(generate("sdpa", use_cache=True), expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decoding_by_steps(cache):
    """One token at a time, and two in one call, whose causal mask is not counted from the top left."""
    model, (ids, mask) = make("llama"), batch("left")
    model.set_attn_implementation("rescaled_signed")
    positions = mask.cumsum(-1).sub(1).clamp(min=0)
    expected = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    if cache == "static":
        state = transformers.StaticCache(config=model.config, max_cache_len=LENGTH + 3)
    else:
        state = transformers.DynamicCache(config=model.config)
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # its older name
    logits = []
    for start, end in ((0, 5), (5, 6), (6, 8), (8, 9)):
        inputs = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
        logits.append(model(**inputs, **{argument: state}, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(logits, 1)[mask.bool()], expected)


@pytest.mark.parametrize(
    ("family", "dropout"), [("gpt2", "attn_pdrop"), ("llama", "attention_dropout"), ("bert", "attention_probs_dropout_prob")]
)
def test_a_training_step_with_dropout(family, dropout):
    model, (ids, mask) = make(family, **{dropout: 0.2}), batch("right")
    model.set_attn_implementation("rescaled_cosh")

    def loss():
        return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss

    model.train()
    assert loss() != loss()
    model.eval()
    before = loss()
    assert before == loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model.train()
    sum(loss() for _ in range(16)).backward()
    optimizer.step()
    model.eval()
    assert loss() < before


def test_second_derivatives():
    model, (ids, mask) = make("llama"), batch("left")
    model.set_attn_implementation("rescaled_signed")
    weight = model.model.layers[0].self_attn.q_proj.weight
    loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    gradient.square().sum().backward()
    assert weight.grad.isfinite().all() and weight.grad.ne(0).any()


def test_compiles_in_one_graph():
    model, (ids, mask) = make("llama"), batch("left")
    model.set_attn_implementation("rescaled_cosh")
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(input_ids=ids, attention_mask=mask, use_cache=False).logits, expected)


def call(name, mask=None, **options):
    """The registered attention itself, on fixed tensors."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 6, 8, dtype=torch.float64, generator=generator) for _ in range(3))
    module = torch.nn.Module()
    return transformers.AttentionInterface()[name](module, query, key, value, mask, **options)[0]


@pytest.mark.parametrize("mask", ["none", "boolean", "floating"])
def test_position_bias(mask):
    bias = torch.randn(1, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    floating = torch.zeros(6, 6, dtype=torch.float64).masked_fill(~causal, torch.finfo(torch.float64).min)
    masks = {"none": None, "boolean": causal[None, None], "floating": floating[None, None]}
    output = call("rescaled_exp", masks[mask], position_bias=bias)
    expected = call("sdpa", (bias + floating))
    torch.testing.assert_close(output, expected)
    (grad,), (expected_grad,) = (torch.autograd.grad(out.sin().sum(), bias) for out in (output, expected))
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"softcap": 50.0}, "softcap, got 50.0"),
        ({"s_aux": torch.zeros(4)}, "s_aux, got a tensor of shape [4]"),
        ({"head_mask": torch.zeros(4)}, "head_mask, got a tensor of shape [4]"),
        ({"output_attentions": True}, "output_attentions, got True"),
    ],
)
def test_what_is_not_there_is_refused(option, text):
    with pytest.raises(NotImplementedError, match=re.escape(f"rescaled_cosh: expected no {text}")):
        call("rescaled_cosh", **option)
    call("rescaled_cosh", softcap=None, output_attentions=False, sliding_window=4)


def test_attentions_are_not_returned():
    model, (ids, _) = make("llama"), batch("none")
    model.set_attn_implementation("rescaled_exp")
    with pytest.raises(NotImplementedError, match="rescaled_exp: expected no output_attentions"):
        model(input_ids=ids, output_attentions=True)
    with pytest.raises(ValueError, match="output_attentions"):
        model.config.output_attentions = True


def test_a_model_that_computes_softmax_itself_is_refused():
    """Through the masks: nothing else of this package would be called."""
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=4)
    transformers.BloomForCausalLM(config)
    masks = transformers.AttentionMaskInterface()["rescaled_cosh"]
    with pytest.raises(NotImplementedError, match=r"rescaled_cosh: expected a model whose attention .*got a bloom"):
        masks(batch_size=2, q_length=5, kv_length=5, config=config)


def test_registering_again_and_without_transformers(monkeypatch):
    assert register() == NAMES == ("rescaled_exp", "rescaled_cosh", "rescaled_sinh", "rescaled_signed")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"expected transformers >= 5 to be installed \(pip install"):
        register()


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs/layers.md").read_text(), flags=re.DOTALL)
    own = [block for block in blocks if "transformers" in block]
    assert own
    for block in own:
        exec(compile(block, "layers.md", "exec"), {"__name__": "page"})
