# SPDX-License-Identifier: BSD-3-Clause
"""The reference: a regression's loss by its definition, in the dtype of its inputs. Imports nothing of the package."""

import torch

KINDS = ("exp", "cosh", "sinh")
FORMS = ("rescaled", "normalized", "plain")


def loss(A, b, x, row_weight=None, penalty_weight=None, *, kind, form):
    """1/2 sum row_weight c^2 + 1/2 |penalty_weight A x|^2; unshifted, for logits of moderate size."""
    z = (A @ x.unsqueeze(-1)).squeeze(-1)
    u = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}[kind](z)
    total = u.sum(-1, keepdim=True)
    c = {"rescaled": u - total * b, "normalized": u / total - b, "plain": u - b}[form]
    value = (c.square() if row_weight is None else row_weight * c.square()).sum(-1) / 2
    return value if penalty_weight is None else value + (penalty_weight * z).square().sum(-1) / 2


def problem(n, d, batch=(), *, weights=False, dtype=torch.float64, shared=()):
    """A, b, x, row_weight, penalty_weight; those named in `shared` have no batch dimensions. Away from the pole of sinh."""

    def new(name, *shape):
        return torch.randn(*(() if name in shared else batch), *shape, dtype=torch.float64)

    A = (0.4 * new("A", n, d) + 0.3) / max(d, 1) ** 0.5
    b = new("b", n).abs() / max(n, 1)
    x = 0.5 * new("x", d) + 0.5
    extra = [new("row_weight", n).abs() + 0.1, 0.2 * new("penalty_weight", n)] if weights else [None, None]
    low = dtype if dtype == torch.float64 else torch.float32
    return [A.to(dtype), *(None if t is None else t.to(low) for t in (b, x, *extra))]
