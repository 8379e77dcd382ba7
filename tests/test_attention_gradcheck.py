# SPDX-License-Identifier: BSD-3-Clause
"""gradcheck and gradgradcheck with the cotangents of all three outputs and a bias."""

import re

import pytest
import torch
from helpers import KINDS
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vjp

from torch_rescaled import attention, attention_with_normalizer

pytestmark = pytest.mark.usefixtures("on_device")


def inputs(batch=(1, 2), kv_batch=(1, 1), n=3, m=4):
    shapes = ((*batch, n, 2), (*kv_batch, m, 2), (*kv_batch, m, 2), (1, 2, n, m))
    # The same numbers on every device: some are near the pole of sinh, where differences would say nothing.
    tensors = (torch.randn(s, dtype=torch.float64, device="cpu") for s in shapes)
    return [t.to(torch.get_default_device()).requires_grad_() for t in tensors]


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

    x = inputs() if fast else inputs(n=2, m=3)  # every entry of every Jacobian takes time
    assert gradgradcheck(f, x, fast_mode=fast, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=fast)


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
    assert gradgradcheck(f, x, fast_mode=True, check_fwd_over_rev=True)


@pytest.fixture
def every_warning():
    """A warning that is given once a process is given each time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


QUADRATIC = r"torch_rescaled::attention: this derivative \(forward over forward, or third order\) .* memory is O\(N M\)"


@pytest.mark.parametrize("kind", KINDS)
def test_third_order_by_plain_formulas_warns(kind, every_warning):
    x = [t.detach()[0].requires_grad_() for t in inputs()[:3]]

    def second(q, k, v):
        grads = torch.autograd.grad(attention(q, k, v, kind=kind).sin().sum(), (q, k, v), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (q, k, v), create_graph=True)

    outputs = second(*x)  # up to second order without a warning, which would be an error
    with pytest.warns(UserWarning, match=QUADRATIC):
        torch.autograd.grad(outputs[0].sum(), x)
    with pytest.warns(UserWarning, match=QUADRATIC):
        assert gradcheck(second, x)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_over_forward_by_plain_formulas_warns(kind, every_warning, capfd):
    x = tuple(t.detach() for t in inputs())

    def directional(*x):
        return jvp(lambda *y: attention(*y, kind=kind), x, x)[1]

    expected = vjp(directional, *x)  # reverse over forward, without a warning
    assert not re.search(QUADRATIC, capfd.readouterr().err)
    second = jvp(directional, x, x)[1]
    assert re.search(QUADRATIC, capfd.readouterr().err)  # outside the autograd engine torch writes warnings of operators there
    cotangent = torch.randn_like(second)
    along = sum((g * t).sum() for g, t in zip(expected[1](cotangent), x, strict=True))
    torch.testing.assert_close((cotangent * second).sum(), along)
