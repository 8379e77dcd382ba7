# SPDX-License-Identifier: BSD-3-Clause
"""Cases, and the error bound every accuracy test uses."""

import math
import os
import sysconfig
from contextlib import contextmanager
from dataclasses import dataclass, field

import oracle
import pytest
import torch

import torch_rescaled

KINDS = ("exp", "cosh", "sinh")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)


@contextmanager
def as_plain_tensors(probe):
    """What an older torch refuses to plain tensors (`probe` raises) it may refuse to ours in the same words, else not."""
    refusal = None
    try:
        probe()
    except Exception as error:
        refusal = error
    try:
        yield
    except Exception as error:
        if refusal is None or not isinstance(error, type(refusal)) or str(refusal).partition("(")[0] not in str(error):
            raise
        pytest.skip(f"torch {torch.__version__} refuses plain tensors too")


class _Heads(torch.nn.Module):
    def forward(self, x):  # [B, L, 16] to [B, 4, L, 4] by way of groups of heads
        return (x.unflatten(-1, (2, 2, 4)).permute(0, 2, 3, 1, 4).contiguous() * 1).flatten(-4, -3)


def export_grouped_heads():
    """With a dynamic length: torch 2.11 cannot prove that min(4 L, 8 L) is 4 L."""
    length = torch.export.Dim("length", min=2, max=64)
    torch.export.export(_Heads(), (torch.randn(3, 9, 16),), dynamic_shapes=({1: length},))


def with_tools():
    """The environment in which cmake and ninja are found: they come with Python's."""
    return {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])}


def dtype_name(value):
    """Readable test ids: float32, not torch.float32."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


@dataclass
class Case:
    """One problem: shapes, features, layout. Calling it gives inputs and settings."""

    n: int = 13
    m: int = 17
    d: int = 7
    dv: int = 5
    batch: tuple[int, ...] = (2, 3)
    kv_batch: tuple[int, ...] | None = None  # of key and value, `batch` if not given
    v_batch: tuple[int, ...] | None = None  # of value, `kv_batch` if not given
    bias: tuple[int, ...] | None = None
    bias_dtype: torch.dtype | None = None
    holes: bool = False  # some entries of the bias are -inf, all of one row
    mask: tuple[int, ...] | None = None
    causal: bool = False
    gqa: bool = False
    scale: float | None = None
    layout: str = "contiguous"
    gradient_layout: str = "contiguous"  # of cotangents and tangents
    leaves: tuple[int, ...] | None = None  # inputs that are differentiated, all if not given
    moving: tuple[int, ...] | None = None  # leaves that have a tangent, all if not given
    outputs: tuple[int, ...] = (0, 1, 2)  # outputs that have a cotangent
    name: str = field(default="")

    def __str__(self) -> str:
        return self.name

    @property
    def score_scale(self):
        return abs(max(self.d, 1) ** -0.5 if self.scale is None else self.scale)

    def tensors(self, dtype):
        kv = self.batch if self.kv_batch is None else self.kv_batch
        q, k, v = (
            self._lay_out(*shape, dtype=dtype)
            for shape in (
                (self.batch, self.n, self.d),
                (kv, self.m, self.d),
                (kv if self.v_batch is None else self.v_batch, self.m, self.dv),
            )
        )
        bias_dtype = self.bias_dtype or dtype
        bias = None if self.bias is None else torch.randn(self.bias, dtype=torch.float64).to(bias_dtype)
        if self.holes:
            bias[torch.rand(self.bias) > 0.6] = -math.inf
            if bias.shape[-2] > 3:
                bias[..., 3, :] = -math.inf
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

    def run(self, op, kind, mask, device="cpu"):
        """`op` and the oracle as functions of the differentiable inputs alone."""
        reference = oracle.grouped if self.gqa else oracle.core
        mask_there = to(device, mask)

        def ours(q, k, v, bias=None):
            return op(
                q, k, v, bias if bias is not None else mask_there,
                is_causal=self.causal, scale=self.scale, enable_gqa=self.gqa, kind=kind,
            )  # fmt: skip

        def dense(q, k, v, bias=None):
            return reference(q, k, v, bias, mask, causal=self.causal, scale=self.scale, kind=kind)

        return ours, dense


def to(device, t):
    """The tensor on a device, its strides and its offset kept (`Tensor.to` packs what is not dense)."""
    if t is None or t.device.type == device:
        return t
    storage = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return storage.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


def random_like(tensors, layout="contiguous"):
    """Cotangents and tangents: in [-1, 1), so that 1 bounds their size."""
    return [oracle.lay_out(2 * torch.rand(t.shape, dtype=torch.float64) - 1, layout) for t in tensors]


def assert_as_accurate(ours, composite, truth, dtype, normalizer, units, statistics=None):
    """error(ours) <= 2 error(the same formula in the same dtype) + (4 eps + eps32 normalizer) max(max|truth|, unit), per tensor.

    eps is the dtype's. eps32, with the eps of the statistics' dtype, because every derivative starts from scores and a
    log_normalizer rounded to it; `normalizer` bounds that: max|s|, with the log weight, plus log M. `units[name]` says for each
    tensor what size a sum of its terms has before it cancels: a gradient can be 0 in exact arithmetic, and no sum of rounded terms
    is.

    `statistics`: for half precision, the same formula in float32, the yardstick of balance, log_normalizer and their derivatives,
    which are float32 and get its eps.

    Where the yardstick is infinite or NaN it allows nothing: those elements do not count. Beyond the largest number of a dtype
    stands its infinity.

    In float64 the truth is no more exact than ours: what is added to the yardstick counts twice, and the yardstick runs on inputs
    with another rounding, so that its difference shows how far rounding carries.
    """
    eps, eps_score = torch.finfo(dtype).eps, torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for name in truth:
        for index, (a, b, t) in enumerate(zip(ours[name], composite[name], truth[name], strict=True)):
            assert a.shape == t.shape, f"{name}[{index}]: expected shape {tuple(t.shape)}, got {tuple(a.shape)}"
            if t.numel() == 0:
                continue
            unit, own = units[name][index]
            if own == "statistics" and statistics is not None:
                b = statistics[name][index]
            rounding = eps_score if own == "statistics" else eps
            infinite, limit = t.isinf(), torch.finfo(a.dtype).max
            assert torch.equal(a[infinite].double(), t[infinite]), f"{name}[{index}]: expected -inf for rows without keys"
            a, b, t = (x.double() for x in (a, b, t))
            error = (a.clamp(-limit, limit) - t.clamp(-limit, limit)).abs()  # what overflows the dtype is infinite in ours
            yardstick = torch.where(b.isfinite() & ~infinite, (b - t).abs(), 0.0).max()
            size = torch.where(infinite, 0.0, t.abs()).max().clamp(min=unit)
            errors = 2 if dtype == torch.float64 else 1
            bound = 2 * yardstick + errors * (4 * rounding + eps_score * normalizer) * size
            assert error.max() <= bound, f"{name}[{index}]: error {error.max():.2e}, bound {bound:.2e}"


def scores_of(case, q, k):
    return case.score_scale * (q @ (k.repeat_interleave(q.shape[-3] // k.shape[-3], -3) if case.gqa else k).mT)


def largest(x):
    x = torch.where(x.isinf(), 0.0, x.abs())
    return x.max().item() if x.numel() else 0.0


def units_of(case, exact, along, leaves, moving, rows):
    """What assert_as_accurate calls units: name -> (unit, "statistics" or "values") for each tensor. `rows`: of the whole batch.

    Outputs, cotangents, values and log weights have the unit 1. A score's gradient is <grad_output, value>, of size sqrt(Dv), less
    its mean, and reaches query as scale |key|, key as scale |query|; the two cancel wholly where there is one key, which the
    composite may do without an error. What is differentiated along a tangent has that factor max |tangent of a score| too, 1 at
    least.
    Gradients of a key, a value and a broadcast bias sum over the rows that share it roundings of random sign: the square root of
    their number, for keys and values times the weight of one of M.
    """
    q, k = exact[:2]
    tangent = [along[i] if i in moving else torch.zeros_like(t) for i, t in enumerate(exact)]
    speed = max(1.0, largest(scores_of(case, tangent[0], k) + scores_of(case, q, tangent[1])))
    score = max(1.0, case.dv**0.5) if 0 in case.outputs else 1.0
    shared = [max(1.0, (rows / max(1, math.prod(t.shape[:-2]))) ** 0.5 / max(1, case.m)) for t in exact[1:3]]
    summed = rows * case.m / exact[3].numel() if len(exact) > 3 and exact[3].numel() else 1.0
    if case.gradient_layout != "expanded":  # of one number for all rows, the roundings have one sign
        summed = summed**0.5
    reach = [
        score * case.score_scale * largest(k), score * case.score_scale * largest(q) * shared[0], shared[1], score * summed
    ]  # fmt: skip
    first = [(reach[i], "values") for i in leaves]
    second = [(speed * reach[i], "values") for i in leaves]
    outputs = [("values" if i == 0 else "statistics") for i in case.outputs]
    moved = [(speed, kind) for kind in outputs]
    return {
        "forward": [(1.0, kind) for kind in outputs],
        "backward": first,
        "jvp": moved,
        "double backward": [*moved, *second],
        "forward over reverse": second,
    }


def check(case, dtype, kind, op=None, device="cpu"):
    """Ours, on the device, against the float64 truth, measured by the same formulas in the same dtype."""
    op = op or torch_rescaled.attention_with_normalizer
    inputs, mask = case.tensors(dtype)
    ours, dense = case.run(op, kind, mask, device)
    exact = [t.double() for t in inputs]
    leaves = tuple(range(len(inputs))) if case.leaves is None else case.leaves
    moving = leaves if case.moving is None else case.moving
    with torch.no_grad():
        shapes = dense(*exact)
    bias = exact[3] if len(exact) > 3 else None
    score = largest(scores_of(case, *exact[:2])) + (largest(bias) if bias is not None else 0.0)
    normalizer = score + math.log(max(1, case.m))
    cotangents = random_like([shapes[i] for i in case.outputs], case.gradient_layout)
    tangents = random_like(inputs, case.gradient_layout)
    low = [c.to(dtype if i == 0 else torch.float32).double() for i, c in zip(case.outputs, cotangents, strict=True)]
    along = [t.to(i.dtype).double() for t, i in zip(tangents, inputs, strict=True)]

    def derivatives(f, x, layout="contiguous"):
        def of_leaves(*y):
            full = list(x)
            for i, t in zip(leaves, y, strict=True):
                full[i] = t
            out = f(*full)
            return tuple(out[i] for i in case.outputs)

        return oracle.derivatives(
            of_leaves, [x[i] for i in leaves], low, [along[i] for i in leaves], [leaves.index(i) for i in moving], layout
        )

    def in_dtype(compute):
        rounded = inputs
        if dtype == torch.float64:
            rounded = [t * (1 + torch.finfo(dtype).eps * torch.randn_like(t)) for t in inputs]
        return derivatives(lambda *x: dense(*(t.to(compute) for t in x)), rounded)

    results = derivatives(ours, [to(device, t) for t in inputs], case.gradient_layout)
    results = {name: [t.cpu() for t in tensors] for name, tensors in results.items()}
    assert_as_accurate(
        results, in_dtype(dtype), derivatives(dense, exact), dtype, normalizer,
        units_of(case, exact, along, leaves, moving, shapes[1].numel()), in_dtype(torch.float32) if dtype in HALF else None,
    )  # fmt: skip
