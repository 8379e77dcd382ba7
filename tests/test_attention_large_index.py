# SPDX-License-Identifier: BSD-3-Clause
"""Elements are indexed with 64 bits: tensors that reach past 2^31 elements give what their compact copies give."""

import pytest
import torch

from torch_rescaled import attention

REACH = 2**31
ROOM = 2**16  # elements between the tensors that share the buffer


def spread(compact, dim, buffer, place):
    """`compact` in `buffer`, contiguous but for `dim`, whose last entry lies beyond 2^31 elements."""
    strides = [0] * compact.dim()
    step = 1
    for d in reversed(range(compact.dim())):
        if d != dim:
            strides[d] = step
            step *= compact.shape[d]
    strides[dim] = REACH // (compact.shape[dim] - 1) + step
    view = buffer.as_strided(compact.shape, strides, place * ROOM)
    assert (compact.shape[dim] - 1) * strides[dim] > REACH
    return view.copy_(compact)


def derivatives(tensors, kind):
    *point, cotangent = (t.detach().requires_grad_() for t in tensors[:5])
    output = attention(*point, is_causal=True, kind=kind)
    grads = torch.autograd.grad(output, point, cotangent, create_graph=True)
    return output, *grads, *torch.autograd.grad(grads, [*point, cotangent], tensors[5:])


@pytest.mark.parametrize("kind", ["exp", "signed"])
@pytest.mark.parametrize("dim", [0, 1, 2], ids=["leading", "row", "column"])
def test_tensors_beyond_2_to_the_31(dim, kind):
    shapes = [(2, 5, 4), (2, 7, 4), (2, 7, 3), (2, 5, 7)]  # query, key, value, bias
    compact = [torch.randn(shape).bfloat16() for shape in (*shapes, (2, 5, 3), *shapes)]  # cotangent, tangents
    buffer = torch.empty(REACH + 2**21, dtype=torch.bfloat16)  # 4 GB of addresses; the pages that are written exist
    far = [spread(t, dim, buffer, place) for place, t in enumerate(compact)]
    for got, expected in zip(derivatives(far, kind), derivatives(compact, kind), strict=True):
        assert torch.equal(got, expected)
