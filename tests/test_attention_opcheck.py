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


def samples():
    q, k, v, bias = leaf(2, 2, 5, 4), leaf(2, 1, 7, 4), leaf(2, 1, 7, 3), leaf(1, 2, 5, 7)
    mask, seed = torch.rand(2, 1, 5, 7) > 0.3, torch.randint(2**62, (2, 2))
    public = [
        ((q, k, v), {}),
        ((q, k, v, bias), {"is_causal": True, "kind": "sinh"}),
        ((q, k, v, mask), {"scale": 0.3, "kind": "signed"}),
        ((leaf(2, 4, 5, 4), leaf(2, 2, 7, 4), leaf(2, 2, 7, 3)), {"enable_gqa": True, "kind": "cosh"}),
        ((q.detach().bfloat16(), k.detach().bfloat16(), v.detach().bfloat16()), {}),
    ]
    yield "attention", public
    yield "attention_with_normalizer", public
    for kind in ("exp", "sinh"):
        for point in ((q, k, v, None, None, None), (q, k, v, bias, mask, seed)):
            settings = (0.25 if point[5] is not None else 0.0, True, None, kind)
            saved = tuple(t.detach() for t in OPS._attention_forward(*point, *settings))
            cotangents = tuple(torch.randn_like(t).requires_grad_() for t in saved)
            tangents = tuple(None if t is None else torch.randn_like(t).requires_grad_() for t in point[:4])
            has_bias = point[3] is not None
            yield "_attention_forward", [((*point, *settings), {})]
            yield (
                "_attention_backward",
                [
                    ((*cotangents, *point, *saved, *settings, [True, True, True, has_bias]), {}),
                    ((cotangents[0], None, None, *point, *saved, *settings, [False, True, False, False]), {}),
                ],
            )
            yield (
                "_attention_jvp",
                [((*tangents, *point, *saved, *settings), {}), ((None, tangents[1], None, None, *point, *saved, *settings), {})],
            )
            yield (
                "_attention_double_backward",
                [
                    ((*tangents, *cotangents, *point, *saved, *settings, [True] * 6 + [has_bias]), {}),
                    (
                        (
                            tangents[0],
                            None,
                            None,
                            None,
                            cotangents[0],
                            None,
                            None,
                            *point,
                            *saved,
                            *settings,
                            [False, False, False, True, False, True, False],
                        ),
                        {},
                    ),
                ],
            )
    yield "_attention_dropout_mask", [((seed, 5, 7, 0.3), {})]
    yield "build_info", [((), {})]


torch.manual_seed(0)
SAMPLES = [(name, args, kwargs) for name, calls in samples() for args, kwargs in calls]


@pytest.mark.parametrize("index", range(len(SAMPLES)), ids=lambda i: f"{SAMPLES[i][0]}-{i}")
def test_operator(index):
    name, args, kwargs = SAMPLES[index]
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if name != "build_info":
        utils.append("test_aot_dispatch_dynamic")
    opcheck(getattr(OPS, name).default, args, kwargs, test_utils=utils)


def test_every_operator_has_a_sample():
    registered = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("torch_rescaled::")}
    assert registered == {name for name, _, _ in SAMPLES}
