# SPDX-License-Identifier: BSD-3-Clause
"""gradcheck and gradgradcheck with the cotangents of all three outputs and a bias."""

import pytest
import torch
from helpers import KINDS
from torch.autograd import gradcheck, gradgradcheck

from torch_rescaled import attention, attention_with_normalizer


def inputs(batch=(1, 2), kv_batch=(1, 1), bias=(1, 2, 3, 4)):
    shapes = ((*batch, 3, 2), (*kv_batch, 4, 2), (*kv_batch, 4, 2), bias)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_first_order(kind, fast):
    def f(q, k, v, b):
        return attention_with_normalizer(q, k, v, b, kind=kind)

    assert gradcheck(
        f,
        inputs(),
        fast_mode=fast,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_second_order(kind, fast):
    def f(q, k, v, b):
        return attention_with_normalizer(q, k, v, b, is_causal=True, kind=kind)

    assert gradgradcheck(f, inputs(), fast_mode=fast, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=fast)


@pytest.mark.parametrize("kind", [*KINDS, "signed"])
def test_public_operator_with_dropout_and_groups(kind):
    mask = torch.rand(3, 4) > 0.3
    mask[:, 0] = True
    mask[2] = False

    def f(q, k, v):
        torch.manual_seed(5)
        return attention(q, k, v, mask, 0.3, enable_gqa=True, kind=kind)

    x = inputs(batch=(1, 4), kv_batch=(1, 2))[:3]
    x[0].data += 2  # away from the pole of sinh
    x[1].data += 2
    assert gradcheck(f, x, check_forward_ad=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True)


@pytest.mark.parametrize("kind", KINDS)
def test_third_order_by_plain_formulas(kind):
    x = [t.detach()[0].requires_grad_() for t in inputs()[:3]]

    def second(q, k, v):
        grads = torch.autograd.grad(attention(q, k, v, kind=kind).sin().sum(), (q, k, v), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (q, k, v), create_graph=True)

    with pytest.warns(UserWarning, match=r"plain-tensor path, whose memory is O\(N M\)") if kind == "exp" else nothing():
        assert gradcheck(second, x)


class nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False
