# SPDX-License-Identifier: BSD-3-Clause
"""One batching rule for every primitive: they take any leading dimensions, so the batch dimension goes to the front.

A tensor without the batch dimension is expanded (stride 0, no copy): the primitives reduce gradients over leading dimensions of
size 1, and under vmap every sample has a gradient of its own. Only what has no gradient stays at size 1; for a dropout seed that
means one dropout mask for all samples, which is what ``randomness="same"`` and ``jacrev`` need.
"""

from collections.abc import Callable
from typing import Any

import torch

from torch_rescaled import _library as _library

_OPS = torch.ops.torch_rescaled
_WITHOUT_GRADIENT = {"mask", "dropout_seed", "x0", "X0", "state", "statistics", "steps", "moment_p", "moment_q"}
_WITHOUT_GRADIENT |= {"target_rows", "target_columns", "target_values", "tangents", "weight"}
_WITHOUT_GRADIENT |= {"crow_indices", "col_indices"}


def _rule(op: torch._ops.OpOverload) -> Callable[..., Any]:
    names = [argument.name for argument in op._schema.arguments]
    outputs = len(op._schema.returns)

    def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        moved = []
        for name, argument, dim in zip(names[: len(args)], args, in_dims, strict=True):
            if not isinstance(argument, torch.Tensor):
                moved.append(argument)
            elif dim is not None:
                moved.append(argument.movedim(dim, 0))
            elif name in _WITHOUT_GRADIENT:
                moved.append(argument.unsqueeze(0))
            else:
                moved.append(argument.expand(info.batch_size, *argument.shape))
        result = op(*moved)
        if outputs == 1:
            return result, 0
        # An output that `need` does not ask for is an empty [0] without a batch dimension.
        return result, tuple(None if t.dim() == 1 and t.numel() == 0 and t.shape[0] != info.batch_size else 0 for t in result)

    return batched


for _op in (
    _OPS._attention_forward.default,
    _OPS._attention_backward.default,
    _OPS._attention_forward_jvp.default,
    _OPS._attention_jvp.default,
    _OPS._attention_double_backward.default,
    _OPS._attention_dropout_mask.default,
    _OPS._regression_forward.default,
    _OPS._regression_backward.default,
    _OPS._regression_jvp.default,
    _OPS._regression_double_backward.default,
    _OPS._regression_evaluate.default,
    _OPS._regression_gauss_newton.default,
    _OPS._regression_product.default,
    _OPS._regression_matvec.default,
    _OPS._regression_transposed.default,
    _OPS._regression_statistics.default,
    _OPS._regression_rows.default,
    _OPS._regression_model.default,
    _OPS._regression_curvature.default,
    _OPS._regression_part.default,
    _OPS._regression_part_statistics.default,
    _OPS._regression_part_gram.default,
    _OPS._solve_regression.default,
    _OPS._solve_matrix_regression.default,
    _OPS._solve_attention_regression.default,
    _OPS._matrix_regression_forward.default,
    _OPS._matrix_regression_backward.default,
    _OPS._matrix_regression_jvp.default,
    _OPS._matrix_regression_double_backward.default,
    _OPS._matrix_regression_statistics.default,
    _OPS._matrix_regression_gradient.default,
    _OPS._matrix_regression_moments.default,
    _OPS._matrix_regression_product.default,
    _OPS._matrix_regression_tangents.default,
    _OPS._matrix_regression_gradient_tangent.default,
    _OPS._matrix_regression_columns.default,
    _OPS._matrix_regression_elements.default,
):
    torch.library.register_vmap(_op, _rule(_op))
