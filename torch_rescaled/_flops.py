# SPDX-License-Identifier: BSD-3-Clause
"""FLOP formulas for :class:`torch.utils.flop_counter.FlopCounterMode`: the products of docs/math.md that a call executes.

One product costs ``2 B H N M`` times D (scores and their tangents, gradients of query and key) or Dv (everything with values);
one that an absent argument or an output not asked for makes superfluous is not counted. As torch does for its own attention,
causality is not subtracted.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from torch_rescaled import _library as _library

_OPS = torch.ops.torch_rescaled
Shape = Sequence[int]


def _pairs(query: Shape, key: Shape, value: Shape) -> int:
    """2 B H N M with the leading dimensions broadcast."""
    count = 2 * query[-2] * key[-2]
    for sizes in zip(query[:-2], key[:-2], value[:-2], strict=True):
        count *= 0 if 0 in sizes else max(sizes)
    return count


@register_flop_formula(_OPS._attention_forward)
def _forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return _pairs(query, key, value) * (query[-1] + value[-1])


@register_flop_formula(_OPS._attention_backward)
def _backward(
    grad_output: Shape | None,
    grad_balance: Shape | None,
    grad_log: Shape | None,
    query: Shape,
    key: Shape,
    value: Shape,
    *rest: Any,
    **_: Any,
) -> int:
    need = rest[-1]
    head, values = query[-1], value[-1]
    depth = head + head * (need[0] + need[1])
    if grad_output is not None:
        depth += values * (1 + need[2])
    return int(_pairs(query, key, value) * depth)


@register_flop_formula(_OPS._attention_jvp)
def _jvp(
    tq: Shape | None,
    tk: Shape | None,
    tv: Shape | None,
    tb: Shape | None,
    query: Shape,
    key: Shape,
    value: Shape,
    *_: Any,
    **__: Any,
) -> int:
    moves = tq is not None or tk is not None or tb is not None
    depth = query[-1] * (1 + (tq is not None) + (tk is not None)) + value[-1] * (moves + (tv is not None))
    return int(_pairs(query, key, value) * depth)


@register_flop_formula(_OPS._attention_forward_jvp)
def _forward_jvp(*arguments: Any, **_: Any) -> int:
    query, key, value = arguments[4:7]
    return _jvp(*arguments) + _pairs(query, key, value) * int(value[-1])


@register_flop_formula(_OPS._attention_double_backward)
def _double_backward(
    tq: Shape | None,
    tk: Shape | None,
    tv: Shape | None,
    tb: Shape | None,
    grad_output: Shape | None,
    grad_balance: Shape | None,
    grad_log: Shape | None,
    query: Shape,
    key: Shape,
    value: Shape,
    *rest: Any,
    **_: Any,
) -> int:
    need = rest[-1]
    first: int = _jvp(tq, tk, tv, tb, query, key, value)
    if not any(need[3:]):
        return first
    head, values = query[-1], value[-1]
    depth = head * (1 + (tq is not None) + (tk is not None))
    depth += head * (need[3] * (1 + (tk is not None)) + need[4] * (1 + (tq is not None)))
    if grad_output is not None:
        depth += values * (1 + (tv is not None) + need[5])
    return int(first + _pairs(query, key, value) * depth)


def _elements(A: Shape, *vectors: Shape | None) -> int:
    """Numbers of A read: n d, or the values of a sparse A, for every problem of the broadcast batch."""
    suffix = len(A) - (len(vectors[0]) - 1) if vectors and vectors[0] is not None else 2
    count = math.prod(A[len(A) - suffix :])
    batches = [A[: len(A) - suffix], *(v[:-1] for v in vectors if v is not None)]
    for sizes in zip(*batches, strict=True):
        count *= 0 if 0 in sizes else max(sizes)
    return int(count)


# Regressions: 2 operations a number of A for each product of its rows, and for each sum of them.
@register_flop_formula([_OPS._regression_forward, _OPS._regression_evaluate, _OPS._regression_part])
def _regression_forward(A: Shape, b: Shape, x: Shape, *rest: Any, **_: Any) -> int:
    return _elements(A, b, x) * 2 * (2 if "plain" in rest else 4)


@register_flop_formula(_OPS._regression_gauss_newton)
def _regression_gauss_newton(A: Shape, b: Shape, x: Shape, *rest: Any, **_: Any) -> int:
    return _elements(A, b, x) * (8 + A[-1])  # half of the symmetric product


@register_flop_formula(_OPS._regression_product)
def _regression_product(A: Shape, b: Shape, x: Shape, *rest: Any, **_: Any) -> int:
    return _elements(A, b, x) * 2 * (3 if "plain" in rest else 8)


@register_flop_formula(_OPS._regression_backward)
def _regression_backward(grad: Shape | None, A: Shape, b: Shape, x: Shape, *rest: Any, **_: Any) -> int:
    need = rest[5]
    others = need[0] or need[1] or need[3] or need[4]  # need the logits
    return int(_elements(A, b, x) * (2 * others + need[0]))


@register_flop_formula(_OPS._regression_double_backward)
def _regression_double_backward(tA: Shape | None, tb: Shape | None, tx: Shape | None, trw: Any, tpw: Any, grad: Any, A: Shape,
                                b: Shape, x: Shape, *rest: Any, **_: Any) -> int:  # fmt: skip
    need = rest[5]
    only_x = tx is not None and tA is None and tb is None and trw is None and tpw is None
    count: int = _regression_product(A, b, x, *rest[:5]) if only_x and need[3] else 0
    if not only_x or need[1] or need[2] or need[4] or need[5]:
        count += _elements(A, b, x) * 2 * (1 + (tA is not None) + (tx is not None) + (need[3] and not only_x) + need[1])
    return count


@register_flop_formula(_OPS._regression_matvec)
def _regression_matvec(A: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return 2 * _elements(A, v)


@register_flop_formula(_OPS._regression_transposed)
def _regression_transposed(A: Shape, weights: Shape, squared: bool = False, *_: Any, **__: Any) -> int:
    return _elements(A, weights[:-1]) * (2 * weights[-2] + squared)


@register_flop_formula([_OPS._regression_curvature, _OPS._regression_part_gram])
def _regression_curvature(A: Shape, rows: Shape, *_: Any, **__: Any) -> int:
    """Half of A^T D A, of a sparse A pairs of a row's values, and four sums of rows."""
    sparse = len(A) == len(rows) - 1
    return int(_elements(A, rows[:-1]) * ((A[-1] / max(rows[-1], 1) if sparse else A[-1]) + 8))


# Matrix regressions: 2 n1 n2 d operations for scores, and for each product with a block of the map; in every pass a
# teacher's scores.
def _map(point: Any, products: int) -> int:
    query, key, target, _, rows, columns, _ = point[:7]
    leading = [shape[:-2] for shape in (query, key, target) if shape is not None]
    teacher = rows is not None and len(rows) == len(query)
    leading += [rows[:-2], columns[:-2]] if teacher else [] if rows is None else [rows[:-1], columns[:-1]]
    count = 2 * query[-2] * key[-2]
    for sizes in zip(*leading, strict=True):
        count *= 0 if 0 in sizes else max(sizes)
    return int(count * (products * query[-1] + (rows[-1] if teacher else 0)))


@register_flop_formula([_OPS._matrix_regression_forward, _OPS._matrix_regression_statistics])
def _matrix_regression_forward(*arguments: Any, **_: Any) -> int:
    kind, form = arguments[8:10]
    return _map(arguments, 2 if form == "plain" or kind == "sinh" else 1)


@register_flop_formula(_OPS._matrix_regression_gradient)
def _matrix_regression_gradient(*arguments: Any, **_: Any) -> int:
    return _map(arguments, 2)


@register_flop_formula([_OPS._matrix_regression_moments, _OPS._matrix_regression_product])
def _matrix_regression_three(*arguments: Any, **_: Any) -> int:
    return _map(arguments, 3)


@register_flop_formula(_OPS._matrix_regression_backward)
def _matrix_regression_backward(*arguments: Any, **_: Any) -> int:
    point, need = arguments[1:], arguments[-1]
    return int(need[0] * _map(point, 2) + need[1] * _map(point, 2) + need[2] * _map(point, 1))


@register_flop_formula([_OPS._matrix_regression_jvp, _OPS._matrix_regression_tangents])
def _matrix_regression_jvp(*arguments: Any, **_: Any) -> int:
    tq, tk = arguments[:2]
    return _map(arguments[3:], 1 + (tq is not None) + (tk is not None))


@register_flop_formula(_OPS._matrix_regression_gradient_tangent)
def _matrix_regression_gradient_tangent(*arguments: Any, **_: Any) -> int:
    tq, tk = arguments[:2]
    return _map(arguments[4:], 2 + (tq is not None) + 2 * (tk is not None))


@register_flop_formula(_OPS._matrix_regression_columns)
def _matrix_regression_columns(*arguments: Any, **_: Any) -> int:
    tq, tk = arguments[:2]
    return _map(arguments[5:], 2 + 2 * (tq is not None) + (tk is not None))


@register_flop_formula(_OPS._matrix_regression_elements)
def _matrix_regression_elements(*arguments: Any, **_: Any) -> int:
    tq, tk = arguments[:2]
    return _map(arguments[5:], 1 + (tq is not None) + (tk is not None))


@register_flop_formula(_OPS._matrix_regression_double_backward)
def _matrix_regression_double_backward(*arguments: Any, **_: Any) -> int:
    tq, tk, tt = arguments[:3]
    point, need = arguments[4:], arguments[-1]
    if tq is None and tk is None and tt is None:
        return 0
    walk = 1 + (tq is not None) + (tk is not None)
    count = (1 + need[3]) * _map(point, walk)
    return int(count + need[1] * _map(point, walk + 1 + (tk is not None)) + need[2] * _map(point, walk + 1 + (tq is not None)))
