# SPDX-License-Identifier: BSD-3-Clause
"""The reference: attention by its definition, dense, in the dtype of its inputs (float64: the truth; less: the yardstick).

Imports nothing of the package. Derivatives come from torch's own autograd on the definition, not from closed formulas.
"""

import math

import torch
from torch import Tensor


def core(q, k, v, bias=None, mask=None, *, causal=False, scale=None, kind="exp", kept=None):
    """(W, balance, log_normalizer) of u = e^bias phi(scale q k^T); `kept`: dropout factors [*, N, M]. Batches broadcast."""
    scale = 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale
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


def _as(x: Tensor, like: Tensor, layout: str) -> Tensor:
    return lay_out(x.to(like.device, like.dtype), layout)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides; "expanded" takes the first number for all."""
    if layout == "expanded":
        return x.flatten()[0].expand(x.shape) if x.numel() else x
    if layout == "transposed" and x.dim() > 1:
        return x.mT.contiguous().mT
    if layout == "sliced":  # every second number along the last two dimensions, from an offset
        last = tuple(2 * n + 1 for n in x.shape[-2:])
        return x.new_full((*x.shape[:-2], *last), math.nan)[(..., *(slice(1, None, 2) for _ in last))].copy_(x)
    return x


def _gradients(outputs, inputs, weights, create_graph=False):
    """torch.autograd.grad, 0 where nothing depends on an input."""
    used = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not used:
        return [torch.zeros_like(t) for t in inputs]
    outputs, weights = zip(*used, strict=True)
    return torch.autograd.grad(outputs, inputs, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def derivatives(f, inputs, cotangents, tangents, moving=None, layout="contiguous"):
    """Everything the family computes, for any f(*inputs) -> outputs: name -> list of tensors.

    Tangents are those of the inputs numbered in `moving` (default: all); cotangents and tangents lie in memory by `layout`.
    """
    moving = range(len(inputs)) if moving is None else moving
    x = [t.detach().requires_grad_() for t in inputs]  # not a copy: it would lose the strides
    out = f(*x)
    g = [_as(c, o, layout).detach().requires_grad_() for c, o in zip(cotangents, out, strict=True)]
    d = [_as(tangents[i], x[i], layout) for i in moving]
    first = _gradients(out, x, g, create_graph=True)
    second = _gradients([first[i] for i in moving], [*g, *x], d)
    point, weights = [t.detach() for t in x], tuple(c.detach() for c in g)

    def at(*y):
        full = list(point)
        for i, t in zip(moving, y, strict=True):
            full[i] = t
        return full

    # torch makes no dual of a tensor that overlaps itself
    primal = tuple(point[i].contiguous() if 0 in point[i].stride() else point[i] for i in moving)
    jvp = torch.func.jvp(lambda *y: f(*at(*y)), primal, tuple(d))[1]
    over = torch.func.jvp(lambda *y: torch.func.vjp(f, *at(*y))[1](weights), primal, tuple(d))[1]
    return {
        "forward": [o.detach() for o in out],
        "backward": [t.detach() for t in first],
        "jvp": list(jvp),
        "double backward": list(second),
        "forward over reverse": list(over),
    }
