# SPDX-License-Identifier: BSD-3-Clause
"""The reference: attention by its definition, dense, in the dtype of its inputs (float64: the truth; less: the yardstick).

Imports nothing of the package. Derivatives come from torch's own autograd on the definition, not from closed formulas.
"""

import math

import torch
from torch import Tensor


def core(q, k, v, bias=None, mask=None, *, causal=False, scale=None, kind="exp", kept=None):
    """(W, balance, log_normalizer) of u = e^bias phi(scale q k^T); `kept`: dropout factors [*, N, M]. Batches broadcast."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    s = (q @ k.mT) * scale
    allowed = torch.ones(s.shape[-2:], dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask
    beta = torch.zeros((), dtype=s.dtype) if bias is None else bias.to(s.dtype)
    allowed = allowed & (beta != -math.inf)
    s, beta, allowed = torch.broadcast_tensors(s, beta, allowed)
    s, beta = torch.where(allowed, s, 0.0), torch.where(allowed, beta, 0.0)
    size = s if kind == "exp" else s.abs()
    if s.shape[-1]:
        shift = torch.where(allowed, size + beta, -math.inf).amax(-1, keepdim=True).detach()
        shift = torch.where(shift == -math.inf, 0.0, shift)
    else:
        shift = s.new_zeros(*s.shape[:-1], 1)
    up = torch.where(allowed, s + beta - shift, -math.inf).exp()
    down = torch.where(allowed, beta - s - shift, -math.inf).exp()
    u = {"exp": up, "cosh": (up + down) / 2, "sinh": (up - down) / 2}[kind]
    c = (u if kind == "exp" else (up + down) / 2).sum(-1, keepdim=True)
    keyless = c == 0
    safe = torch.where(keyless, 1.0, c)
    a = u / safe
    log_normalizer = torch.where(keyless, -math.inf, shift + safe.log()).squeeze(-1)
    return (a if kept is None else a * kept) @ v, a.sum(-1), log_normalizer


def grouped(q, k, v, bias=None, mask=None, **settings):
    """`core` with grouped query heads: keys and values repeated."""
    group = q.shape[-3] // k.shape[-3]
    return core(q, k.repeat_interleave(group, -3), v.repeat_interleave(group, -3), bias, mask, **settings)


def _as(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def derivatives(f, inputs, cotangents, tangents):
    """Everything the family computes, for any f(*inputs) -> outputs: name -> list of tensors."""
    x = [t.detach().clone().requires_grad_() for t in inputs]
    out = f(*x)
    g = [_as(c, o).clone().requires_grad_() for c, o in zip(cotangents, out, strict=True)]
    d = [_as(t, i) for t, i in zip(tangents, x, strict=True)]
    first = torch.autograd.grad(out, x, g, create_graph=True)
    second = torch.autograd.grad(first, [*g, *x], d, allow_unused=True, materialize_grads=True)
    jvp = torch.func.jvp(f, tuple(t.detach() for t in x), tuple(d))[1]
    over = torch.func.jvp(
        lambda *y: torch.func.vjp(f, *y)[1](tuple(c.detach() for c in g)), tuple(t.detach() for t in x), tuple(d)
    )[1]
    return {
        "forward": [o.detach() for o in out],
        "backward": [t.detach() for t in first],
        "jvp": list(jvp),
        "double backward": list(second),
        "forward over reverse": list(over),
    }
