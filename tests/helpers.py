# SPDX-License-Identifier: BSD-3-Clause
"""Cases, and the error bound every accuracy test uses."""

from dataclasses import dataclass, field

import oracle
import torch

import torch_rescaled

KINDS = ("exp", "cosh", "sinh")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Case:
    """One problem: shapes, features, layout. Calling it gives inputs and settings."""

    n: int = 13
    m: int = 17
    d: int = 7
    dv: int = 5
    batch: tuple[int, ...] = (2, 3)
    kv_batch: tuple[int, ...] | None = None
    bias: tuple[int, ...] | None = None
    bias_dtype: torch.dtype | None = None
    mask: tuple[int, ...] | None = None
    causal: bool = False
    gqa: bool = False
    scale: float | None = None
    layout: str = "contiguous"
    name: str = field(default="")

    def __str__(self) -> str:
        return self.name

    def tensors(self, dtype):
        kv = self.batch if self.kv_batch is None else self.kv_batch
        q, k, v = (
            self._lay_out(*shape, dtype=dtype)
            for shape in ((self.batch, self.n, self.d), (kv, self.m, self.d), (kv, self.m, self.dv))
        )
        bias_dtype = self.bias_dtype or dtype
        bias = None if self.bias is None else torch.randn(self.bias, dtype=torch.float64).to(bias_dtype)
        mask = None
        if self.mask is not None:
            mask = torch.rand(self.mask) > 0.4
            if mask.shape[-2] > 3:
                mask[..., 3, :] = False  # a row without keys
        return [q, k, v, *([] if bias is None else [bias])], mask

    def _lay_out(self, batch, rows, columns, dtype):
        def new(*shape):
            return torch.randn(shape, dtype=torch.float64).to(dtype)

        if self.layout == "transposed":  # [B, N, H, D] in memory
            return new(*batch[:-1], rows, batch[-1], columns).transpose(-2, -3)
        if self.layout == "sliced":  # every second column of every second row, from an offset
            return new(*batch, 2 * rows + 1, 2 * columns + 1)[..., 1::2, 1::2]
        if self.layout == "expanded":
            return new(*batch[:-1], 1, rows, columns).expand(*batch, rows, columns)
        return new(*batch, rows, columns)

    def run(self, op, kind, mask):
        """`op` and the oracle as functions of the differentiable inputs alone."""
        reference = oracle.grouped if self.gqa else oracle.core

        def ours(q, k, v, bias=None):
            return op(
                q, k, v, bias if bias is not None else mask, is_causal=self.causal, scale=self.scale, enable_gqa=self.gqa, kind=kind
            )

        def dense(q, k, v, bias=None):
            return reference(q, k, v, bias, mask, causal=self.causal, scale=self.scale, kind=kind)

        return ours, dense


def random_like(tensors):
    return [torch.randn(t.shape, dtype=torch.float64) for t in tensors]


def assert_as_accurate(ours, composite, truth, dtype, largest_score, summed=1, amplification=1.0):
    """error(ours) <= 2 error(the same formula in the same dtype) + (4 + 2 max|s|) eps max(|truth|, 1), for every tensor.

    eps max|s| because all derivatives start from a log_normalizer rounded to the dtype of the statistics; 1 because the inputs are
    of that size, and a zero is a sum of such: of `summed` ones in the gradient of a broadcast bias, and times a tangent of a score,
    at most `amplification`, in what is differentiated along one.

    In float64 the truth is no more exact than the yardstick, which therefore runs on inputs with another rounding: its difference
    shows how far rounding carries, and both errors must fit.
    """
    eps = torch.finfo(dtype).eps
    last = {"backward": 3, "double backward": 6, "forward over reverse": 3}

    def terms(name, index):
        return (1.0 if name in ("forward", "backward") else amplification) * (summed**0.5 if last.get(name) == index else 1.0)

    own = 16 if dtype == torch.float64 else 4
    for name in truth:
        for index, (a, b, t) in enumerate(zip(ours[name], composite[name], truth[name], strict=True)):
            assert a.shape == t.shape, f"{name}[{index}]: expected shape {tuple(t.shape)}, got {tuple(a.shape)}"
            if t.numel() == 0:
                continue
            assert torch.equal(a.isinf(), t.isinf()), f"{name}[{index}]: -inf in other places"
            error, yardstick = (torch.where(t.isinf(), 0.0, (x.double() - t).abs()).max() for x in (a, b))
            size = torch.where(t.isinf(), 0.0, t.abs()).max()
            bound = 2 * torch.nan_to_num(yardstick) + (own + 2 * largest_score) * eps * size.clamp(min=terms(name, index))
            assert error <= bound, f"{name}[{index}]: error {error:.2e}, bound {bound:.2e}"


def scores_of(case, exact):
    q, k = exact[:2]
    return q @ (k.repeat_interleave(q.shape[-3] // k.shape[-3], -3) if case.gqa else k).mT


def largest_score_tangent(case, exact, along):
    """max |tangent of a score|, 1 at least."""
    tangent = scores_of(case, [along[0], exact[1]]) + scores_of(case, [exact[0], along[1]])
    scale = abs(case.scale or max(case.d, 1) ** -0.5)
    return max(1.0, scale * tangent.abs().max().item() if tangent.numel() else 0.0)


def largest_exponent(case, exact):
    """max |score| + max |log weight|: what is rounded before it is exponentiated."""
    scores = scores_of(case, exact)
    scale = abs(case.scale or max(case.d, 1) ** -0.5)
    largest = scale * scores.abs().max().item() if scores.numel() else 0.0
    return largest + (exact[3].abs().max().item() if len(exact) > 3 and exact[3].numel() else 0.0)


def check(case, dtype, kind, op=None):
    """Ours against the float64 truth, measured by the same formulas in the same dtype."""
    op = op or torch_rescaled.attention_with_normalizer
    inputs, mask = case.tensors(dtype)
    ours, dense = case.run(op, kind, mask)
    exact = [t.double() for t in inputs]
    with torch.no_grad():
        shapes = dense(*exact)
        largest = largest_exponent(case, exact)
    summed = scores_of(case, exact).numel() / exact[3].numel() if len(exact) > 3 and exact[3].numel() else 1
    cotangents, tangents = random_like(shapes), random_like(inputs)
    cotangents = [torch.where(shapes[2].isinf(), 0.0, c) if c.dim() == shapes[2].dim() else c for c in cotangents]
    low = [c.to(dtype).double() if i == 0 else c.float().double() for i, c in enumerate(cotangents)]
    along = [t.to(i.dtype).double() for t, i in zip(tangents, inputs, strict=True)]
    amplification = largest_score_tangent(case, exact, along)
    truth = oracle.derivatives(dense, exact, low, along)
    rounded = inputs
    if dtype == torch.float64:
        rounded = [t * (1 + torch.finfo(dtype).eps * torch.randn_like(t)) for t in inputs]
    composite = oracle.derivatives(lambda *x: dense(*(t.to(dtype) for t in x)), rounded, low, along)
    assert_as_accurate(oracle.derivatives(ours, inputs, low, along), composite, truth, dtype, largest, summed, amplification)
