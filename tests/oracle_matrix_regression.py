# SPDX-License-Identifier: BSD-3-Clause
"""The reference: a matrix regression's loss by its definition, in the dtype of its inputs. Imports nothing of the package."""

import torch

KINDS = ("exp", "cosh", "sinh")
FORMS = ("rescaled", "normalized", "plain")


def loss(A1, X, A2, B, attn_mask=None, is_causal=False, regularization=0.0, *, kind, form):
    """1/2 |c|^2 over the elements that take part; unshifted, for logits of moderate size."""
    z = A1 @ X @ A2.mT
    taken = torch.ones(z.shape[-2:], dtype=torch.bool)
    if is_causal:
        taken = taken.tril()
    if attn_mask is not None:
        taken = taken & attn_mask
    u = {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}[kind](z)
    u = torch.where(taken, u, 0.0)
    B = torch.where(taken, B, 0.0)
    total = u.sum(-1, keepdim=True)
    divisor = torch.where(taken.any(-1, keepdim=True), total, 1.0)
    c = {"rescaled": lambda: u - total * B, "normalized": lambda: u / divisor - B, "plain": lambda: u - B}[form]()
    return c.square().sum((-2, -1)) / 2 + regularization / 2 * z.square().sum((-2, -1))


def teacher_map(query, key, attn_mask=None, is_causal=False, *, kind):
    """u(Q K^T) divided by its rows' sums, over the elements that take part."""
    z = query @ key.mT
    taken = torch.ones(z.shape[-2:], dtype=torch.bool)
    taken = taken.tril() if is_causal else taken
    taken = taken if attn_mask is None else taken & attn_mask
    u = torch.where(taken, {"exp": torch.exp, "cosh": torch.cosh, "sinh": torch.sinh}[kind](z), 0.0)
    return u / torch.where(taken.any(-1, keepdim=True), u.sum(-1, keepdim=True), 1.0)


def sparse(B, kept):
    """crow_indices, col_indices, values of about a share `kept` of B; every matrix of a batch has as many."""
    if not B.numel():
        crow = torch.zeros(*B.shape[:-2], B.shape[-2] + 1, dtype=torch.long)
        return [crow, crow[..., :0], B.new_zeros(*B.shape[:-2], 0)]
    stored = round(kept * B.shape[-2] * B.shape[-1])
    crow, columns, values = [], [], []
    for matrix in B.reshape(-1, *B.shape[-2:]):
        at = torch.randperm(matrix.numel())[:stored].sort().values
        row = at // B.shape[-1]
        crow.append(torch.searchsorted(row, torch.arange(B.shape[-2] + 1)))
        columns.append(at % B.shape[-1]), values.append(matrix.reshape(-1)[at])
    return [torch.stack(part).reshape(*B.shape[:-2], -1) for part in (crow, columns, values)]


def to_dense(crow, columns, values, n2):
    """The matrix that the components are of."""
    batch, out = crow.shape[:-1], []
    if not columns.numel():
        return values.new_zeros(*batch, crow.shape[-1] - 1, n2)
    for rows, column, value in zip(crow.reshape(-1, crow.shape[-1]), columns.reshape(-1, columns.shape[-1]),
                                   values.reshape(-1, values.shape[-1]), strict=True):  # fmt: skip
        matrix = value.new_zeros(len(rows) - 1, n2)
        matrix[torch.repeat_interleave(torch.arange(len(rows) - 1), rows.diff()), column] = value
        out.append(matrix)
    return torch.stack(out).reshape(*batch, -1, n2)


def problem(n1, n2, d1, d2, batch=(), *, dtype=torch.float64, shared=()):
    """A1, X, A2, B; those named in `shared` have no batch dimensions. Away from the pole of sinh; the same on every device."""

    def new(name, *shape):
        made = torch.randn(*(() if name in shared else batch), *shape, dtype=torch.float64, device="cpu")
        return made.to(torch.get_default_device())

    A1 = (0.4 * new("A1", n1, d1) + 0.3) / max(d1, 1) ** 0.5
    A2 = (0.4 * new("A2", n2, d2) + 0.3) / max(d2, 1) ** 0.5
    X = 0.5 * new("X", d1, d2) + 0.5
    B = new("B", n1, n2).abs() / max(n2, 1)
    low = dtype if dtype == torch.float64 else torch.float32
    return [A1.to(dtype), X.to(low), A2.to(dtype), B.to(low)]
