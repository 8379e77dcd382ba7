# SPDX-License-Identifier: BSD-3-Clause
"""What the functions do with their arguments before the operators see them."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

KINDS = ("exp", "cosh", "sinh", "signed")


@torch.jit.unused
def resolve_mask(
    op: str, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> tuple[Tensor | None, bool]:
    """A :class:`CausalBias` as what it means, and a refusal of what the operator cannot read."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_readable(op, name, tensor)
    if attn_mask is None:
        return attn_mask, is_causal
    if isinstance(attn_mask, CausalBias):
        n, m = query.shape[-2], key.shape[-2]
        if (attn_mask.seq_len_q, attn_mask.seq_len_kv) != (n, m):
            sizes = f"[{attn_mask.seq_len_q}, {attn_mask.seq_len_kv}]"
            raise ValueError(f"torch_rescaled::{op}: expected attn_mask, a CausalBias, of lengths [{n}, {m}], got {sizes}")
        if attn_mask.variant == CausalVariant.UPPER_LEFT or n == m:
            return None, True
        return torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n), is_causal
    if type(attn_mask).__name__ == "BlockMask":  # by name: its module takes long to import
        raise NotImplementedError(
            f"torch_rescaled::{op}: expected attn_mask to be a torch.Tensor, got a BlockMask; sliding windows and other sparse "
            "masks do not exist yet, a boolean attn_mask that broadcasts to [*, H, N, M] does"
        )
    check_readable(op, "attn_mask", attn_mask)
    return attn_mask, is_causal


def check_readable(op: str, name: str, tensor: Tensor) -> None:
    """Refuses nested tensors, and subclasses that do not dispatch: an operator reads storage, which they may not have."""
    kind = type(tensor)
    plain = kind is Tensor or kind is torch.nn.Parameter  # first: small calls wait for these lines
    if not plain and not issubclass(kind, Tensor):
        raise TypeError(f"torch_rescaled::{op}: expected {name} to be a torch.Tensor, got {kind.__name__}")
    if tensor.is_nested:
        raise NotImplementedError(
            f"torch_rescaled::{op}: expected {name} to be a dense torch.Tensor, got a nested one; packed variable lengths do not "
            "exist yet, padding with a boolean attn_mask does"
        )
    if not plain and kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        raise TypeError(f"torch_rescaled::{op}: expected {name} to be a plain torch.Tensor, got {kind.__name__}")


@torch.jit.unused
def design(op: str, A: Any) -> Tensor:
    """A as a dense or sparse_csr tensor: any format of scipy.sparse as the latter, which shares its arrays if it is CSR."""
    if hasattr(A, "tocsr") and not isinstance(A, Tensor):
        csr = A.tocsr()
        with warnings.catch_warnings():  # that they are in beta is of no concern here: only their components are used
            warnings.simplefilter("ignore", UserWarning)
            rows, columns, values = (torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data))
            return torch.sparse_csr_tensor(rows, columns, values, list(csr.shape), check_invariants=False)
    check_readable(op, "A", A)
    matrix: Tensor = A
    return matrix


@torch.jit.unused
def components(A: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """What the operators take of a sparse_csr tensor."""
    return A.crow_indices(), A.col_indices(), A.values(), A.shape[-1]


def check_kind(where: str, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{where}: expected kind 'exp', 'cosh', 'sinh' or 'signed', got {kind!r}")
