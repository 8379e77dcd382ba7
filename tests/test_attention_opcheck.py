# SPDX-License-Identifier: BSD-3-Clause
"""torch.library.opcheck for every registered operator; an operator without a sample is a failure."""

import pytest
import torch
from torch.library import opcheck

import torch_rescaled  # noqa: F401

OPS = torch.ops.torch_rescaled
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch_rescaled.*plain-tensor path"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # opcheck's own, on views
]


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def query_key_value():
    return leaf(2, 2, 5, 4), leaf(2, 1, 7, 4), leaf(2, 1, 7, 3)


# Samples are made inside the tests: a kernel that fails is a failure of its own test.
PUBLIC = {
    "plain": lambda: (query_key_value(), {}),
    "bias": lambda: ((*query_key_value(), leaf(1, 2, 5, 7)), {"is_causal": True, "kind": "sinh"}),
    "mask": lambda: ((*query_key_value(), torch.rand(2, 1, 5, 7) > 0.3), {"scale": 0.3, "kind": "signed"}),
    "grouped": lambda: ((leaf(2, 4, 5, 4), leaf(2, 2, 7, 4), leaf(2, 2, 7, 3)), {"enable_gqa": True, "kind": "cosh"}),
    "bfloat16": lambda: (tuple(t.detach().bfloat16() for t in query_key_value()), {}),
}


LOSS = {
    "rescaled": lambda: ((*query_key_value(), leaf(2, 2, 5, 3)), {"log_row_scale": leaf(2, 2, 5), "kind": "cosh"}),
    "normalized": lambda: (
        (*query_key_value(), leaf(2, 2, 5, 3)),
        {"attn_mask": leaf(1, 2, 5, 7), "form": "normalized", "reduction": "none", "kind": "signed"},
    ),
    "logarithm": lambda: ((*query_key_value(), leaf(2, 2, 5, 3)), {"is_causal": True, "reduction": "mean", "log": True}),
}


class Problem:
    """A point, its saved outputs, tangents and cotangents, as the primitives take them."""

    def __init__(self, kind, everything):
        extras = leaf(1, 2, 5, 7), torch.rand(2, 1, 5, 7) > 0.3, torch.randint(2**62, (2, 2))
        self.point = (*query_key_value(), *(extras if everything else (None,) * 3))
        self.settings = (0.25 if everything else 0.0, True, None, kind)
        self.saved = tuple(t.detach() for t in OPS._attention_forward(*self.point, *self.settings))
        self.cotangents = tuple(torch.randn_like(t).requires_grad_() for t in self.saved)
        self.tangents = tuple(None if t is None else torch.randn_like(t).requires_grad_() for t in self.point[:4])
        self.has_bias = everything

    def of(self, tangents, cotangents, need):
        return (*tangents, *cotangents, *self.point, *self.saved, *self.settings, *need)


PRIMITIVES = {
    "_attention_forward": {"all": lambda p: (*p.point, *p.settings)},
    "_attention_backward": {
        "all": lambda p: p.of((), p.cotangents, [[True, True, True, p.has_bias]]),
        "key from output": lambda p: p.of((), (p.cotangents[0], None, None), [[False, True, False, False]]),
    },
    "_attention_forward_jvp": {
        "all": lambda p: (*p.tangents, *p.point, *p.settings),
        "along key": lambda p: (None, p.tangents[1], None, None, *p.point, *p.settings),
    },
    "_attention_jvp": {
        "all": lambda p: p.of(p.tangents, (), []),
        "along key": lambda p: p.of((None, p.tangents[1], None, None), (), []),
    },
    "_attention_double_backward": {
        "all": lambda p: p.of(p.tangents, p.cotangents, [[True] * 6 + [p.has_bias]]),
        "query and value along query": lambda p: p.of(
            (p.tangents[0], None, None, None),
            (p.cotangents[0], None, None),
            [[False, False, False, True, False, True, False]],
        ),
    },
}
OTHERS = {
    "_attention_dropout_mask": lambda: (torch.randint(2**62, (2, 2)), 5, 7, 0.3),
    "_cuda_path": lambda: (0,),
    "build_info": lambda: (),
}


def check(name, args, kwargs):
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if name not in ("_cuda_path", "build_info"):  # a graph holds no text
        utils.append("test_aot_dispatch_dynamic")
    opcheck(getattr(OPS, name).default, args, kwargs, test_utils=utils)


@pytest.mark.parametrize("sample", PUBLIC)
@pytest.mark.parametrize("name", ["attention", "attention_with_normalizer"])
def test_public_operator(name, sample):
    check(name, *PUBLIC[sample]())


@pytest.mark.parametrize("sample", LOSS)
def test_loss(sample):
    check("attention_loss", *LOSS[sample]())


@pytest.mark.parametrize("everything", [False, True], ids=["plain", "bias, mask and dropout"])
@pytest.mark.parametrize("kind", ["exp", "sinh"])
@pytest.mark.parametrize(("name", "sample"), [(name, sample) for name, samples in PRIMITIVES.items() for sample in samples])
def test_primitive(name, sample, kind, everything):
    check(name, PRIMITIVES[name][sample](Problem(kind, everything)), {})


@pytest.mark.parametrize("name", OTHERS)
def test_other_operator(name):
    check(name, OTHERS[name](), {})


def test_every_operator_has_a_sample():
    registered = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("torch_rescaled::")}
    others = {name for name in registered if "regression" in name or name.startswith("newton_step")}  # test_regression_*.py
    assert registered - others == {"attention", "attention_loss", "attention_with_normalizer", *PRIMITIVES, *OTHERS}
