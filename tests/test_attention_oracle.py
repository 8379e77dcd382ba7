# SPDX-License-Identifier: BSD-3-Clause
"""Forward, backward, JVP and double backward against the dense float64 definition: every kind, dtype, mask and layout."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import DTYPES, HALF, KINDS, Case, check, dtype_name

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
    Case(name="grouped, bias of all heads", gqa=True, batch=(2, 4), kv_batch=(2, 2), bias=(2, 1, 13, 17)),
    Case(name="grouped, bias of keys", gqa=True, batch=(2, 4), kv_batch=(2, 2), bias=(2, 1, 1, 17), causal=True),
    Case(name="grouped, mask of heads", gqa=True, batch=(2, 4), kv_batch=(2, 2), mask=(2, 4, 13, 17)),
    Case(name="grouped, mask of all heads", gqa=True, batch=(2, 6), kv_batch=(2, 2), mask=(1, 1, 13, 17)),
    Case(name="grouped, mask of keys", gqa=True, batch=(2, 4), kv_batch=(2, 1), mask=(2, 1, 1, 17)),
    Case(name="shared query", batch=(1, 1), kv_batch=(2, 3)),
    Case(name="keys and values of other batches", batch=(2, 3), kv_batch=(2, 1), v_batch=(1, 3)),
    Case(name="query of rank 2", batch=(), kv_batch=(2, 3), bias=(3, 13, 17)),
    Case(name="keys of rank 2", batch=(2, 3), kv_batch=(), v_batch=(3,)),
    Case(name="values of rank 2", batch=(3,), kv_batch=(2, 3), v_batch=(), bias=(2, 1, 13, 1)),
    Case(name="bias with -inf", bias=(3, 13, 17), holes=True),
    Case(name="bias with -inf, causal", bias=(2, 1, 1, 17), holes=True, causal=True),
    Case(name="head 65, value 3", n=9, m=11, d=65, dv=3, batch=(2,)),
    Case(name="head 96, value 128", n=9, m=11, d=96, dv=128, batch=(2,), causal=True),
    Case(name="head 129, value 65", n=9, m=11, d=129, dv=65, batch=(2,), bias=(9, 11)),
    Case(name="head 257, value 129", n=9, m=11, d=257, dv=129, batch=(2,)),
    Case(name="head 5, value 257", n=9, m=11, d=5, dv=257, batch=(2,)),
    Case(name="scores of size 10000", n=33, m=70, d=8, batch=(2,), scale=500.0),
    Case(
        name="scores of size 10000, causal, bias with -inf", m=29, batch=(2,), scale=500.0, causal=True, bias=(13, 29), holes=True
    ),
    Case(name="scores of size 0.001", n=33, m=70, batch=(2,), scale=1e-4, mask=(33, 70)),
    Case(name="gradients transposed", gradient_layout="transposed", bias=(3, 13, 17)),
    Case(name="gradients sliced", gradient_layout="sliced", bias=(1, 3, 13, 17)),
    Case(name="gradients expanded", gradient_layout="expanded", bias=(2, 1, 13, 17)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives(case, dtype, kind, device):
    check(case, dtype, kind, device=device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
@pytest.mark.parametrize("holes", [False, True])
def test_float32_bias_with_half_precision(kind, dtype, holes, device):
    check(Case(bias=(3, 13, 17), bias_dtype=torch.float32, holes=holes), dtype, kind, device=device)


PARTS = [
    *(Case(name=f"leaves {i}", leaves=i) for i in ((0,), (1,), (2,), (3,), (0, 3), (1, 2))),
    *(Case(name=f"outputs {i}", outputs=i) for i in ((0,), (1,), (2,), (0, 2))),
    *(Case(name=f"tangents {i}", moving=i) for i in ((0,), (1,), (2,), (3,), (1, 3))),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_some_leaves_cotangents_and_tangents(part, kind, device):
    check(replace(part, n=31, m=70, bias=(1, 3, 31, 70), causal=True), torch.float32, kind, device=device)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leaves", [s for n in (1, 2, 3, 4) for s in itertools.combinations(range(4), n)], ids=str)
@pytest.mark.parametrize("outputs", [s for n in (1, 2, 3) for s in itertools.combinations(range(3), n)], ids=str)
def test_every_subset_of_leaves_and_cotangents(leaves, outputs, kind, device):
    for n in range(1, len(leaves) + 1):
        for moving in itertools.combinations(leaves, n):
            case = Case(bias=(3, 13, 17), leaves=leaves, moving=moving, outputs=outputs)
            for dtype in (torch.float64, torch.bfloat16):
                check(case, dtype, kind, device=device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(
    "shape",
    [
        {"n": 0}, {"m": 0}, {"n": 0, "m": 0}, {"d": 0, "scale": 1.0}, {"dv": 0}, {"batch": (0, 3)}, {"batch": (2, 0)},
        {"m": 0, "causal": True}, {"batch": (0, 3), "kv_batch": (1, 3)}, {"m": 0, "bias": (13, 1)}, {"n": 0, "bias": (1, 17)},
    ],
    ids=str,
)  # fmt: skip
def test_empty(shape, dtype, kind, device):
    check(Case(**shape), dtype, kind, device=device)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("d", [65, 96, 127, 128, 129, 257, 512])
@pytest.mark.parametrize("dv", [1, 64, 65, 128, 257])
def test_large_heads(d, dv, dtype, kind, device):
    check(
        Case(n=35, m=70, d=d, dv=dv, batch=(2, 4), kv_batch=(2, 2), gqa=True, causal=True, bias=(1, 4, 1, 70)),
        dtype,
        kind,
        device=device,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("gradient_layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_every_pair_of_layouts(layout, gradient_layout, dtype, kind, device):
    check(Case(n=53, m=70, layout=layout, gradient_layout=gradient_layout, bias=(3, 53, 70)), dtype, kind, device=device)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_long(dtype, kind, device):
    check(Case(n=1100, m=900, d=64, dv=80, batch=(2,), causal=True), dtype, kind, device=device)
