# SPDX-License-Identifier: BSD-3-Clause
"""Forward, backward, JVP and double backward against the dense float64 definition: every kind, dtype, mask and layout."""

import pytest
import torch
from helpers import DTYPES, KINDS, Case, check

CASES = [
    Case(name="plain"),
    Case(name="one row", n=1),
    Case(name="one key", m=1),
    Case(name="one of all", n=1, m=1, d=1, dv=1, batch=(1,)),
    Case(name="rank 2", batch=()),
    Case(name="rank 5", batch=(2, 1, 2)),
    Case(name="many panels", n=101, m=131, d=33, dv=19, batch=(2,)),
    Case(name="many blocks", n=150, m=400, d=16, dv=16, batch=(1,)),
    Case(name="square 64", n=64, m=64, d=64, dv=64, batch=(1, 2)),
    Case(name="causal", causal=True),
    Case(name="causal, long", causal=True, n=200, m=200, d=8, dv=8, batch=(1,)),
    Case(name="causal, more keys", causal=True, n=70, m=150, batch=(1,)),
    Case(name="causal, fewer keys", causal=True, n=150, m=70, batch=(1,)),
    Case(name="mask", mask=(2, 3, 13, 17)),
    Case(name="mask of keys", mask=(2, 1, 1, 17)),
    Case(name="mask, causal", mask=(13, 17), causal=True),
    Case(name="bias", bias=(2, 3, 13, 17)),
    Case(name="bias of heads", bias=(1, 3, 13, 17)),
    Case(name="bias of batches", bias=(2, 1, 1, 17)),
    Case(name="bias of rows", bias=(3, 13, 1)),
    Case(name="bias, shared", bias=(13, 17), causal=True),
    Case(name="bias, one number", bias=(1, 1)),
    Case(name="bias, long", bias=(1, 150, 170), n=150, m=170, batch=(2, 2)),
    Case(name="scale", scale=0.7),
    Case(name="negative scale", scale=-0.3),
    Case(name="transposed", layout="transposed", n=53),
    Case(name="sliced", layout="sliced"),
    Case(name="expanded", layout="expanded"),
    Case(name="shared keys", kv_batch=(1, 1)),
    Case(name="keys of batches", kv_batch=(2, 1), n=70),
    Case(name="grouped 2", gqa=True, batch=(2, 4), kv_batch=(2, 2)),
    Case(name="grouped 3, bias", gqa=True, batch=(2, 6), kv_batch=(2, 2), bias=(1, 6, 13, 17)),
    Case(name="multi-query, causal", gqa=True, batch=(2, 4), kv_batch=(2, 1), causal=True),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives(case, dtype, kind):
    check(case, dtype, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_bias_with_half_precision(kind, dtype):
    check(Case(bias=(3, 13, 17), bias_dtype=torch.float32), dtype, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape",
    [
        {"n": 0}, {"m": 0}, {"n": 0, "m": 0}, {"d": 0, "scale": 1.0}, {"dv": 0}, {"batch": (0, 3)}, {"batch": (2, 0)},
        {"m": 0, "causal": True}, {"batch": (0, 3), "kv_batch": (1, 3)}, {"m": 0, "bias": (13, 1)}, {"n": 0, "bias": (1, 17)},
    ],
    ids=str,
)  # fmt: skip
def test_empty(shape, kind):
    check(Case(**shape), torch.float32, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long(dtype, kind):
    check(Case(n=1100, m=900, d=64, dv=80, batch=(2,), causal=True), dtype, kind)
