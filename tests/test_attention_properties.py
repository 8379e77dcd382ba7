# SPDX-License-Identifier: BSD-3-Clause
"""Hypothesis: shapes (0, 1, odd, prime), strides, scales, masks; against the oracle, and invariances."""

import pytest
import torch
from helpers import DTYPES, KINDS, Case, check
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from torch_rescaled import attention, attention_with_normalizer

SIZES = st.sampled_from([0, 1, 2, 3, 7, 16, 17, 31, 48, 49, 65, 97])
HEADS = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 17])
BATCHES = {
    "plain": {"batch": (2, 2)},
    "grouped": {"batch": (2, 4), "kv_batch": (2, 2), "gqa": True},
    "shared keys": {"batch": (2, 2), "kv_batch": (1, 2)},
    "shared query": {"batch": (1, 1), "kv_batch": (2, 2)},
    "keys of one, values of the other": {"batch": (2, 2), "kv_batch": (2, 1), "v_batch": (1, 2)},
}
SHAPES = {"bias": ("n", "m"), "row bias": (2, 1, "n", 1), "key bias": (1, 1, "m"), "mask": (2, 1, "n", "m")}


@st.composite
def cases(draw):
    n, m = draw(SIZES), draw(SIZES)
    masking = draw(st.sampled_from(["none", "none", *SHAPES]))
    shape = tuple({"n": n, "m": m}.get(size, size) for size in SHAPES.get(masking, ()))
    return Case(
        n=n, m=m, d=draw(HEADS), dv=draw(HEADS), causal=draw(st.booleans()), layout=draw(LAYOUTS), gradient_layout=draw(LAYOUTS),
        scale=draw(st.sampled_from([None, 1e-3, 0.03, 0.5, 1.0, 30.0, 1000.0])), mask=shape if masking == "mask" else None,
        bias=shape if masking.endswith("bias") else None, holes=masking.endswith("bias") and draw(st.booleans()),
        **BATCHES[draw(st.sampled_from(list(BATCHES)))],
    )  # fmt: skip


LAYOUTS = st.sampled_from(["contiguous", "transposed", "sliced", "expanded"])
PROBLEM = {
    "case": cases(),
    "kind": st.sampled_from(KINDS),
    "dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 1000),
}


def against_the_oracle(case, kind, dtype, seed, device):
    torch.manual_seed(seed)
    check(case, dtype, kind, device=device)


# The device is the same for all examples.
DEVICE = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}


@given(**PROBLEM)
@settings(max_examples=80, **DEVICE)
# Scores all alike: the normalizer's rounding, of the size of log M, is all there is.
@example(case=Case(n=7, m=48, d=0, dv=0, batch=(2, 2), bias=(2, 1, 7, 1)), kind="exp", dtype=torch.float16, seed=0)
def test_against_the_oracle(case, kind, dtype, seed, device):
    against_the_oracle(case, kind, dtype, seed, device)


@pytest.mark.slow
@given(**PROBLEM)
@settings(max_examples=2000, **DEVICE)
def test_against_the_oracle_at_length(case, kind, dtype, seed, device):
    against_the_oracle(case, kind, dtype, seed, device)


@pytest.mark.usefixtures("on_device")
@settings(**DEVICE)
@given(size=st.floats(1e-3, 1e3), kind=st.sampled_from(KINDS), seed=st.integers(0, 1000))
def test_any_scale_is_finite_and_bounded(size, kind, seed):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, rows, 8, requires_grad=True) for rows in (19, 37, 37))
    output, balance, log_normalizer = attention_with_normalizer(size * q, k, v, kind=kind)
    grads = torch.autograd.grad([output.sum(), balance.sum(), log_normalizer.sum()], (q, k, v))
    for t in (output, balance, log_normalizer, *grads):
        assert t.isfinite().all()
    assert (output.abs() <= v.abs().amax() * (1 + 1e-5)).all() and (balance.abs() <= 1 + 1e-5).all()


@pytest.mark.usefixtures("on_device")
@settings(**DEVICE)
@given(kind=st.sampled_from([*KINDS, "signed"]), seed=st.integers(0, 1000))
def test_order_of_keys_does_not_matter(kind, seed):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(3, rows, 6, dtype=torch.float64) for rows in (11, 23, 23))
    order = torch.randperm(23)
    a, b = attention_with_normalizer(q, k, v, kind=kind), attention_with_normalizer(q, k[:, order], v[:, order], kind=kind)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.usefixtures("on_device")
@settings(**DEVICE)
@given(kind=st.sampled_from(["exp", "cosh", "signed"]), shift=st.floats(-300, 300), seed=st.integers(0, 1000))
def test_a_constant_log_weight_moves_only_the_normalizer(kind, shift, seed):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(rows, 6, dtype=torch.float64) for rows in (11, 23, 23))
    bias = torch.full((1, 1), shift, dtype=torch.float64)
    torch.testing.assert_close(attention(q, k, v, bias, kind=kind), attention(q, k, v, kind=kind), rtol=1e-9, atol=1e-9)
    a, b = (attention_with_normalizer(q, k, v, x, kind=kind)[2] for x in (bias, None))
    torch.testing.assert_close(a, b + shift)
