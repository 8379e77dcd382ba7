# SPDX-License-Identifier: BSD-3-Clause
"""Who runs in the attention benchmark: this package's operators and PyTorch's scaled_dot_product_attention."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from timing import Contestant, Run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import torch_rescaled  # noqa: F401  registers the operators

# Matrix products of 2 B H N M D flop: the standard count of docs/math.md. Contestants that execute more, or fewer (our JVP
# primitive 5, after a forward's 2; our double backward 15; everyone who skips half of a causal mask), are held to the same count.
UNITS = {"forward": 2, "backward": 5, "jvp": 6, "double_backward": 16}
OURS, OURS_EXP, OURS_PRIMITIVE = "torch_rescaled", "torch_rescaled exp", "torch_rescaled primitive"
FLASH, FLASH_PRIMITIVE, MATH = "sdpa flash", "sdpa flash primitive", "sdpa math"
COMPILED, FLEX = "compiled formula", "compiled FlexAttention"

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
ops = torch.ops.torch_rescaled


@dataclass(frozen=True)
class Case:
    """One row: what is computed, at which sizes."""

    piece: str
    kind: str = "exp"
    dtype: str = "float32"
    is_causal: bool = False
    heads: int = 1
    length: int = 1024
    head_size: int = 64
    queries: int | None = None  # None: as many as keys

    @property
    def rows(self) -> int:
        """Queries of each matrix."""
        return self.length if self.queries is None else self.queries

    @property
    def flop(self) -> float:
        """The standard count; a causal mask leaves half."""
        return UNITS[self.piece] * 2 * self.heads * self.rows * self.length * self.head_size * (0.5 if self.is_causal else 1)


@dataclass(frozen=True)
class Data:
    """The point, a cotangent of the output, and tangents of the point: in the double backward, of its gradients."""

    point: tuple[Tensor, Tensor, Tensor]  # query, key, value, [1, H, N, D] each
    cotangent: Tensor
    tangents: tuple[Tensor, Tensor, Tensor]
    attn_mask: Tensor | None = None

    @staticmethod
    def of(case: Case) -> "Data":
        generator = torch.Generator().manual_seed(0)
        rows, keys = ((1, case.heads, length, case.head_size) for length in (case.rows, case.length))
        shapes = [rows, keys, keys, rows, rows, keys, keys]
        parts = [torch.randn(shape, generator=generator).to(getattr(torch, case.dtype)) for shape in shapes]
        return Data((parts[0], parts[1], parts[2]), parts[3], (parts[4], parts[5], parts[6]))

    def doubled(self, case: Case) -> "Data":
        """cosh and signed attention as softmax attention, for the peer: keys [K; -K], values [V; V] or [V; -V]."""
        sign = 1 if case.kind == "cosh" else -1

        def double(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return query, torch.cat([key, -key], -2), torch.cat([value, sign * value], -2)

        mask = None
        if case.is_causal:
            ones = torch.ones(case.length, case.length, dtype=torch.bool).tril()
            mask = torch.zeros(case.length, 2 * case.length, dtype=self.cotangent.dtype)
            mask.masked_fill_(~torch.cat([ones, ones], 1), float("-inf"))
        return Data(double(*self.point), self.cotangent, double(*self.tangents), mask)


def _forward(attention: Attention, data: Data) -> Run:
    def piece() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (attention(*data.point),)

    return piece


def _leaves(data: Data) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (t.detach().requires_grad_() for t in data.point)
    return query, key, value


def _backward(attention: Attention, data: Data) -> Run:
    point = _leaves(data)
    output = attention(*point)
    return lambda: torch.autograd.grad(output, point, data.cotangent)


def _jvp(attention: Attention, data: Data) -> Run:
    """Output and its tangent in one call, as every user of forward mode gets them."""

    def piece() -> tuple[Tensor, ...]:
        with forward_ad.dual_level():
            query, key, value = map(forward_ad.make_dual, data.point, data.tangents)
            output, tangent = forward_ad.unpack_dual(attention(query, key, value))
            return output, tangent

    return piece


def _double_backward(attention: Attention, data: Data) -> Run:
    """Only the backward of the backward: gradients of <grads, tangents> with respect to the point and the cotangent."""
    point, cotangent = _leaves(data), data.cotangent.detach().requires_grad_()
    grads = torch.autograd.grad(attention(*point), point, cotangent, create_graph=True)
    return lambda: torch.autograd.grad(grads, (*point, cotangent), data.tangents)


PIECES = {"forward": _forward, "backward": _backward, "jvp": _jvp, "double_backward": _double_backward}


def _our_primitive(case: Case, data: Data) -> Run:
    """The kernel's own operator, without autograd's bookkeeping."""
    point = (*data.point, None, None, None)
    kind = "sinh" if case.kind == "signed" else case.kind
    settings = (0.0, case.is_causal, None, kind)
    saved = ops._attention_forward(*point, *settings)
    tangents, cotangents = (*data.tangents, None), (data.cotangent, None, None)
    return {
        "forward": lambda: ops._attention_forward(*point, *settings)[:1],
        "backward": lambda: ops._attention_backward(*cotangents, *point, *saved, *settings, [True] * 3 + [False])[:3],
        "jvp": lambda: (saved[0], ops._attention_jvp(*tangents, *point, *saved, *settings)[0]),
        "double_backward": lambda: _gradients_first(
            ops._attention_double_backward(
                *tangents, *cotangents, *point, *saved, *settings, [True, False, False, True, True, True, False]
            )
        ),
    }[case.piece]


def _gradients_first(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return *outputs[3:6], outputs[0]


def _flash_primitive(case: Case, data: Data) -> Run:
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    output, log_normalizer = forward(*data.point, 0.0, case.is_causal)
    return lambda: backward(data.cotangent, *data.point, output, log_normalizer, 0.0, case.is_causal)


def formula(case: Case) -> Attention:
    """The textbook's lines for a kind, as a user hands them to torch.compile."""
    allowed = torch.ones(case.rows, case.length, dtype=torch.bool).tril() if case.is_causal else None

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-2, -1) * case.head_size**-0.5
        least = float("-inf")
        if case.kind == "exp":
            return torch.softmax(scores if allowed is None else scores.masked_fill(~allowed, least), -1) @ value
        sizes = scores.abs()
        largest = (sizes if allowed is None else sizes.masked_fill(~allowed, least)).amax(-1, keepdim=True)
        positive, negative = (scores - largest).exp(), (-scores - largest).exp()
        if allowed is not None:
            positive, negative = positive.masked_fill(~allowed, 0), negative.masked_fill(~allowed, 0)
        sum_of_weights = (positive + negative).sum(-1, keepdim=True)
        return (positive + negative if case.kind == "cosh" else positive - negative) @ value / sum_of_weights

    return attention


def compiled(case: Case, data: Data) -> list[Contestant]:
    """What torch.compile makes of the formula, and FlexAttention, which has no gradient on CPU and no other kind."""
    torch.compiler.reset()
    lines = torch.compile(formula(case), dynamic=False)
    result = [Contestant(COMPILED, lambda: PIECES[case.piece](lines, data))]
    if case.piece == "forward" and case.kind == "exp":
        flex = torch.compile(flex_attention, dynamic=False)
        blocks = None
        if case.is_causal:
            blocks = create_block_mask(lambda b, h, row, column: row >= column, None, None, case.rows, case.length, device="cpu")
        result.append(Contestant(FLEX, lambda: _forward(lambda *point: flex(*point, block_mask=blocks), data)))
    return result


def contestants(case: Case, with_compiled: bool = False) -> list[Contestant]:
    """Ours and the best that PyTorch has for the piece: flash for the first two, the math path for the others."""
    data, piece = Data.of(case), PIECES[case.piece]
    first_order = case.piece in ("forward", "backward")
    peer, backend = (FLASH, SDPBackend.FLASH_ATTENTION) if first_order else (MATH, SDPBackend.MATH)

    def ours(kind: str) -> Attention:
        return lambda *point: ops.attention(*point, is_causal=case.is_causal, kind=kind)

    def theirs(data: Data) -> Attention:
        is_causal = case.is_causal and data.attn_mask is None
        return lambda *point: scaled_dot_product_attention(*point, attn_mask=data.attn_mask, is_causal=is_causal)

    result = [
        Contestant(OURS, lambda: piece(ours(case.kind), data)),
        Contestant(OURS_PRIMITIVE, lambda: _our_primitive(case, data)),
    ]
    their_data = data
    if case.kind != "exp":
        result.append(Contestant(OURS_EXP, lambda: piece(ours("exp"), data)))
        their_data = data.doubled(case)
    result.append(Contestant(peer, lambda: piece(theirs(their_data), their_data), lambda: sdpa_kernel(backend)))
    if case.kind == "exp" and case.piece == "backward":
        result.append(Contestant(FLASH_PRIMITIVE, lambda: _flash_primitive(case, data)))
    if with_compiled and first_order:  # it has neither forward mode nor second derivatives
        result += compiled(case, data)
    return result


def require_agreement(case: Case, listed: list[Contestant]) -> None:
    """Nobody is fast at computing something else. Not checked: another kind, and keys that the peer has doubled."""
    if case.kind == "sinh":  # the peer computes W, not W / balance
        return
    results = {c.name: c.run()[1] for c in listed if c.name != OURS_EXP}
    bound = 2e-2 if case.dtype in ("bfloat16", "float16") else 1e-4
    for name, result in results.items():
        for number, (got, expected) in enumerate(zip(result, results[OURS], strict=True)):
            if got.shape == expected.shape:
                error = (got - expected).abs().max() / expected.abs().max()
                if not error <= bound:
                    raise RuntimeError(f"{case}: {name} and {OURS} differ by {error:.1e} in result {number}")


def memory_contestants(case: Case) -> list[Contestant]:
    """Contestants of the memory table: the math path beside flash as well."""
    data = Data.of(case)

    def math(*point: Tensor) -> Tensor:
        return scaled_dot_product_attention(*point, is_causal=case.is_causal)

    listed = [c for c in contestants(case) if c.name in (OURS, FLASH)]
    return [*listed, Contestant(MATH, lambda: PIECES[case.piece](math, data), lambda: sdpa_kernel(SDPBackend.MATH))]
