# SPDX-License-Identifier: BSD-3-Clause
"""Loss, gradient and curvature products of a closure at the parameters as they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, grad
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

__all__ = ["Closure", "Curvature", "FrozenRandomness", "check_kind"]

Closure = Callable[[], Any]
_OP = "torch_rescaled::optim"


def check_kind(op: str, kind: str) -> None:
    if kind not in ("gauss_newton", "hessian"):
        raise ValueError(f"{op}: expected curvature 'gauss_newton' or 'hessian', got {kind!r}")


class FrozenRandomness:
    """The random state of the CPU and of the parameters' devices, and a model's buffers, as they are now."""

    def __init__(self, parameters: Sequence[Tensor], model: torch.nn.Module | None) -> None:
        self.devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(d) for d in self.devices]
        self.buffers = [] if model is None else list(model.buffers())
        self.values = [b.clone() for b in self.buffers]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, everything random is as it was when this was made; after, as it would be without the block."""
        now = [b.clone() for b in self.buffers]
        # The buffers end as they began, so graphs that saved them stay good.
        with torch.random.fork_rng(self.devices), _unsafe_preserve_version_counter(tuple(self.buffers)):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            self._set_buffers(self.values)
            try:
                yield
            finally:
                self._set_buffers(now)

    @torch.no_grad()
    def _set_buffers(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)


def evaluate(closure: Closure) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """What a closure returned, checked: the loss, and the outputs if there are any."""
    result = closure()
    loss, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        got = f"a tensor of shape {list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"{_OP}: expected the closure to return a loss of one floating-point number, or (loss, outputs), got {got}")
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    return loss.reshape(()), None if outputs is None else tuple(outputs)


class Curvature:
    """A closure's loss and gradient at the parameters as they are, and products with its Hessian or Gauss-Newton matrix.

    The Gauss-Newton matrix is J^T H J, J the outputs' Jacobian in the parameters and H the loss's Hessian in the outputs. One graph
    is kept: a Hessian product is a backward of the gradient's graph; a Gauss-Newton product is the closure in forward mode, two
    steps through the loss alone, and one backward of the outputs. No matrix is formed.

    Args:
        closure: computes the loss, or ``(loss, outputs)`` for ``"gauss_newton"``; does not call ``backward()``. Gauss-Newton
            products call it again, with the random state of the first call.
        parameters: what the curvature is in; every one must have a gradient. They must keep their values while products are taken.
        kind: ``"gauss_newton"`` or ``"hessian"``.
        others: parameters whose gradient is wanted beside.
        model: a module whose buffers all but the first call leave as they are.

    Attributes: ``loss``, ``outputs``, and ``gradient``, a list as long as ``parameters`` and ``others`` together.

    Raises:
        TypeError: a loss that is not one floating-point number; no outputs for ``"gauss_newton"``.
        ValueError: a parameter that the loss does not depend on.
        RuntimeError: a closure that consumes its graph.

    Example:
        >>> import torch, torch_rescaled
        >>> layer = torch_rescaled.nn.RescaledAttention(16, 2, kind="cosh")
        >>> x, parameters = torch.randn(2, 10, 16), list(layer.parameters())
        >>> curvature = torch_rescaled.optim.Curvature(lambda: layer(x).square().mean(), parameters, "hessian")
        >>> [t.shape for t in curvature.product(curvature.gradient)] == [p.shape for p in parameters]
        True

    Source: Pearlmutter, Fast exact multiplication by the Hessian (1994); Schraudolph (2002) for the Gauss-Newton product.
    """

    def __init__(
        self,
        closure: Closure,
        parameters: Sequence[Tensor],
        kind: str,
        others: Sequence[Tensor] = (),
        model: torch.nn.Module | None = None,
    ) -> None:
        check_kind(_OP, kind)
        self.closure, self.parameters, self.kind = closure, list(parameters), kind
        self.frozen = FrozenRandomness([*parameters, *others], model)
        with torch.enable_grad():
            loss, self.outputs = evaluate(closure)
            if kind == "gauss_newton" and self.outputs is None:
                raise TypeError(
                    f"{_OP}: expected the closure to return (loss, outputs) for curvature 'gauss_newton', got the loss alone; "
                    "return what the loss is computed from, or pass curvature='hessian'"
                )
            self.loss = loss.detach()
            try:
                self._differentiate(loss, [*parameters, *others])
            except RuntimeError as error:
                if "backward through the graph a second time" not in str(error):
                    raise
                raise RuntimeError(
                    f"{_OP}: expected a closure that leaves its graph to the optimizer, got one whose graph is consumed: it must "
                    "not call backward()"
                ) from error

    def _differentiate(self, loss: Tensor, wanted: list[Tensor]) -> None:
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if loss.requires_grad and all(p.requires_grad for p in wanted):
            found = grad(loss, wanted, create_graph=self.kind == "hessian", retain_graph=True, allow_unused=True)
        missing = [i for i, g in enumerate(found) if g is None]
        if missing:
            raise ValueError(
                f"{_OP}: expected a loss that depends on every parameter, got none for parameter {missing[0]} of shape "
                f"{list(wanted[missing[0]].shape)} ({len(missing)} of {len(wanted)})"
            )
        self._graph = [g for g in found if g is not None]
        self.gradient = [g.detach() for g in self._graph]
        if self.kind == "gauss_newton":
            assert self.outputs is not None
            self._loss_gradient = grad(loss, self.outputs, create_graph=True, allow_unused=True)

    def product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """The matrix times ``direction``, tensors of the parameters' shapes."""
        found = self._hessian(direction) if self.kind == "hessian" else self._gauss_newton(direction)
        return [torch.zeros_like(p) if f is None else f.detach() for p, f in zip(self.parameters, found, strict=True)]

    def _hessian(self, direction: Sequence[Tensor]) -> Sequence[Tensor | None]:
        pairs = [(g, v) for g, v in zip(self._graph[: len(direction)], direction, strict=True) if g.requires_grad]
        if not pairs:
            return [None] * len(self.parameters)
        return grad([g for g, _ in pairs], self.parameters, [v for _, v in pairs], retain_graph=True, allow_unused=True)

    def _gauss_newton(self, direction: Sequence[Tensor]) -> Sequence[Tensor | None]:
        assert self.outputs is not None
        along = [
            (o, g, t)
            for o, g, t in zip(self.outputs, self._loss_gradient, self._forward(direction), strict=True)
            if g is not None and g.requires_grad and t is not None
        ]
        if not along:
            return [None] * len(self.parameters)
        outputs = [o for o, _, _ in along]
        curved = grad([g for _, g, _ in along], outputs, [t for _, _, t in along], retain_graph=True, allow_unused=True)
        pairs = [(o, c) for o, c in zip(outputs, curved, strict=True) if c is not None]
        if not pairs:
            return [None] * len(self.parameters)
        return grad([o for o, _ in pairs], self.parameters, [c for _, c in pairs], retain_graph=True, allow_unused=True)

    def _forward(self, direction: Sequence[Tensor]) -> list[Tensor | None]:
        """Tangents of the outputs: the parameters are made dual in place, which changes no value and no version."""
        with (
            torch.no_grad(),
            self.frozen.again(),
            forward_ad.dual_level(),
            _unsafe_preserve_version_counter(tuple(self.parameters)),
        ):
            for p, v in zip(self.parameters, direction, strict=True):
                p.add_(forward_ad.make_dual(torch.zeros_like(p), v))  # type: ignore[no-untyped-call]
            _, outputs = evaluate(self.closure)
            assert outputs is not None
            return [forward_ad.unpack_dual(o).tangent for o in outputs]  # type: ignore[no-untyped-call]

    def loss_again(self) -> Tensor:
        """The loss at the parameters as they are now."""
        with torch.no_grad(), self.frozen.again():
            return evaluate(self.closure)[0].detach()
