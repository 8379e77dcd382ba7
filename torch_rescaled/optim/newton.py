# SPDX-License-Identifier: BSD-3-Clause
"""Newton steps by conjugate gradients on curvature products."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from torch_rescaled.nn import RescaledAttention
from torch_rescaled.optim._cg import Iterate, Tensors, conjugate_gradients, dot, plus
from torch_rescaled.optim._preconditioners import PRECONDITIONERS, Blocks, check_blocks, random_signs
from torch_rescaled.optim.curvature import Closure, Curvature, FrozenRandomness, check_kind

__all__ = ["Newton"]

_OP = "torch_rescaled::optim.Newton"
_LEAST_DAMPING, _MOST_DAMPING = 1e-12, 1e12
_BACKTRACKS = 6


class Newton(Optimizer):
    r"""Steps :math:`\delta` that minimize a quadratic model :math:`g^T\delta + \frac12 \delta^T (B + \lambda I)\, \delta` of the
    loss by conjugate gradients; B is the Gauss-Newton matrix or the Hessian of a batch, known by its products alone.

    The damping :math:`\lambda` follows how well the model predicted the loss (Levenberg-Marquardt). Matrices take Newton's steps;
    parameters of one dimension, and groups with ``method="adamw"``, take AdamW's.

    Args:
        params: parameters, or groups of them. A group may set ``method`` (``"newton"`` or ``"adamw"``), ``lr``,
            ``weight_decay``, ``betas``, ``eps`` and ``blocks``, a pair (axis, count): the Kronecker preconditioner has factors for
            every one of ``count`` parts of a matrix along the axis, heads for example. Without ``method``, parameters of two
            dimensions and more are Newton's; :meth:`parameter_groups` also gives embeddings to AdamW, and heads their blocks.
            Real, dense, floating point.
        lr: factor of Newton's step; 1 is the whole of it.
        damping: the first :math:`\lambda`, in units of the loss over squared parameters. Kept in the groups.
        curvature: ``"gauss_newton"`` (never negative; needs a closure that returns ``(loss, outputs)``, the outputs being what
            the loss is computed from by twice differentiable operations) or ``"hessian"``.
        max_cg_iterations: products a step.
        cg_tolerance: conjugate gradients stop when an iteration lowers the model by less than this part of it.
        preconditioner: ``"diagonal"`` or ``"kronecker"``: a running mean of the curvature's diagonal, or of a Kronecker product for
            every matrix, estimated by one more product a step; ``"none"``.
        warm_start: how much of the last direction the next conjugate gradients start from.
        weight_decay: decoupled, as AdamW's.
        adamw_lr, betas, eps: of AdamW's groups.
        model: whose buffers (of batch normalization, say) all but a step's first call of the closure leave as they are.
        seed: of the random signs that the preconditioner is estimated with.

    A closure computes the loss and **must not call backward()**. It is called several times a step (once with a graph, once a
    product in forward mode, once a trial), each time with the same random state, so that dropout masks agree. It may be a
    sequence of closures, one for each micro-batch: their losses are averaged. One host synchronization a CG iteration and a
    trial.

    Raises: ValueError or TypeError naming the argument, for parameters and closures that do not fit. A step whose loss is not
    finite is not taken: the damping is raised, everything else is kept.

    Example:
        >>> import torch, torch_rescaled
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch_rescaled.optim.Newton(model.parameters(), damping=1e-3)
        >>> x, y = torch.randn(32, 4), torch.randn(32, 1)
        >>> def closure():
        ...     outputs = model(x)
        ...     return (outputs - y).square().mean(), outputs
        >>> loss = optimizer.step(closure)

    Source: Martens, Deep learning via Hessian-free optimization (2010); Schraudolph (2002) for the Gauss-Newton product.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        *,
        damping: float = 1.0,
        curvature: str = "gauss_newton",
        max_cg_iterations: int = 30,
        cg_tolerance: float = 5e-4,
        preconditioner: str = "diagonal",
        warm_start: float = 0.95,
        weight_decay: float = 0.0,
        adamw_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        model: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        numbers = {"lr": lr, "damping": damping, "weight_decay": weight_decay, "adamw_lr": adamw_lr, "eps": eps}
        shares = {"cg_tolerance": cg_tolerance, "warm_start": warm_start}
        for name, value in (numbers | shares).items():
            most = 1 if name in shares else math.inf
            if not 0 <= value <= most:
                raise ValueError(f"{_OP}: expected 0 <= {name} <= {most}, got {value}")
        check_kind(_OP, curvature)
        if preconditioner not in PRECONDITIONERS:
            raise ValueError(f"{_OP}: expected preconditioner {', '.join(map(repr, PRECONDITIONERS))}, got {preconditioner!r}")
        if max_cg_iterations < 1:
            raise ValueError(f"{_OP}: expected max_cg_iterations >= 1, got {max_cg_iterations}")
        self.curvature, self.preconditioner = curvature, PRECONDITIONERS[preconditioner]
        self.max_cg_iterations, self.cg_tolerance, self.warm_start = max_cg_iterations, cg_tolerance, warm_start
        self.model, self.seed = model, seed
        self._given: Sequence[Closure] | None = None
        self._step_supports_amp_scaling = True  # so that a GradScaler comes here, to be refused, instead of scaling in silence
        self.adamw_lr = adamw_lr
        super().__init__(
            list(_split(params)),
            {"lr": lr, "damping": damping, "weight_decay": weight_decay, "betas": betas, "eps": eps, "blocks": (0, 1)},
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        parameters = param_group["params"]
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        for p in parameters:
            if p.is_complex() or p.layout != torch.strided or not p.is_floating_point():
                raise TypeError(f"{_OP}: expected real, dense, floating-point parameters, got {p.dtype}, {p.layout}")
        method = param_group.get("method")
        if method not in ("newton", "adamw"):
            raise ValueError(f"{_OP}: expected method 'newton' or 'adamw' of a parameter group, got {method!r}")
        if param_group.get("blocks", (0, 1)) != (0, 1):
            for p in parameters:
                check_blocks(_OP, p, param_group["blocks"])
        lr = {} if method == "newton" else {"lr": self.adamw_lr}
        super().add_param_group({**lr, **param_group, "params": parameters})

    @staticmethod
    def parameter_groups(model: nn.Module, embeddings: str = "adamw") -> list[dict[str, Any]]:
        """A model's trainable parameters: matrices for Newton, all of one dimension for AdamW, embeddings as told.

        ``embeddings="newton"`` is better where the table also reads out (a tied one): every row then has a gradient.
        """
        if embeddings not in ("adamw", "newton"):
            raise ValueError(f"{_OP}.parameter_groups: expected embeddings 'adamw' or 'newton', got {embeddings!r}")
        tables = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and embeddings == "adamw"]
        skipped = {id(p) for m in tables for p in m.parameters(recurse=False)}
        cuts: dict[int, Blocks] = {}
        for module in model.modules():
            if isinstance(module, RescaledAttention):
                heads, kv_heads = module.num_heads, module.kv_heads
                layers = (
                    (module.query, 0, heads),
                    (module.key, 0, kv_heads),
                    (module.value, 0, kv_heads),
                    (module.output, 1, heads),
                )
                cuts |= {id(layer.weight): (axis, count) for layer, axis, count in layers}
            elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                cuts |= {id(module.in_proj_weight): (0, 3 * module.num_heads), id(module.out_proj.weight): (1, module.num_heads)}
        parameters = [p for p in model.parameters() if p.requires_grad]
        newton = [p for p in parameters if p.dim() >= 2 and id(p) not in skipped]
        groups: dict[Blocks, list[Tensor]] = {}
        for p in newton:
            groups.setdefault(cuts.get(id(p), (0, 1)), []).append(p)
        taken = {id(p) for p in newton}
        rest = [p for p in parameters if id(p) not in taken]
        found: list[dict[str, Any]] = [{"params": some, "method": "newton", "blocks": blocks} for blocks, some in groups.items()]
        return found + ([{"params": rest, "method": "adamw"}] if rest else [])

    def update_curvature(self, closure: Closure | Sequence[Closure]) -> None:
        """The closure whose curvature the steps without a closure use, evaluated at the parameters of each step; the gradient is
        then the parameters' ``grad``. Another batch than the gradient's, or a part of it, is as good."""
        self._given = closure if isinstance(closure, Sequence) else [closure]

    def _all_parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _newton_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["method"] == "newton"]

    @overload  # type: ignore[override]
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Closure | Sequence[Closure]) -> Tensor: ...

    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Tensor | None:
        """One step; returns the closure's loss before it.

        Without a closure the gradient is the parameters' ``grad``, which may have been accumulated and clipped, and the curvature
        is that of ``update_curvature``.
        """
        if hasattr(self, "grad_scale") or hasattr(self, "found_inf"):
            raise RuntimeError(
                f"{_OP}: expected no GradScaler, got one: it would scale the gradient and not the curvature; use bfloat16"
            )
        self._create_state()
        if closure is None and self._given is None:
            if any(group["lr"] != 0 for group in self._newton_groups()):
                raise RuntimeError(f"{_OP}: expected a closure, or update_curvature(closure) before, got neither")
            self._adamw_steps()
            return None
        if closure is not None:
            return self._whole_step(closure if isinstance(closure, Sequence) else [closure], with_gradient=True)
        assert self._given is not None
        with FrozenRandomness(self._all_parameters(), self.model).again():
            self._whole_step(self._given, with_gradient=False)
        return None

    def _create_state(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if state:
                    continue
                state["step"] = torch.zeros((), dtype=torch.float32)
                newton = group["method"] == "newton"
                for name in ("direction",) if newton else ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
                if newton and self.preconditioner is not None:
                    state.update(self.preconditioner.state(p, group["blocks"]))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's; factors of preconditioners keep their type, whatever the parameter's is."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, self._all_parameters(), strict=True):
            for name in ("rows", "columns", "trace"):
                if name in self.state[p]:
                    self.state[p][name] = state_dict["state"][i][name].clone().to(p.device)

    def _whole_step(self, closures: Sequence[Closure], with_gradient: bool) -> Tensor:
        newton = [p for group in self._newton_groups() for p in group["params"]]
        others = [p for group in self.param_groups if group["method"] == "adamw" for p in group["params"]] if with_gradient else []
        batches = [Curvature(closure, newton, self.curvature, others, self.model) for closure in closures]
        share = 1 / len(batches)
        loss = torch.stack([b.loss for b in batches]).mean()
        if with_gradient:
            for parameters in zip(newton + others, *(b.gradient for b in batches), strict=True):
                p, *gradients = parameters
                p.grad = gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0) * share
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in newton]
        start = loss.item()
        if not math.isfinite(start):
            self._set_damping(4)
            return loss
        if newton and any(group["lr"] != 0 for group in self._newton_groups()):
            self._newton_step(batches, share, newton, gradient, start, compare=with_gradient)
        self._adamw_steps()
        return loss

    def _damping(self) -> float:
        return float(self._newton_groups()[0]["damping"])

    def _set_damping(self, factor: float) -> None:
        for group in self._newton_groups():
            group["damping"] = min(max(group["damping"] * factor, _LEAST_DAMPING), _MOST_DAMPING)

    @torch.no_grad()
    def _newton_step(
        self, batches: Sequence[Curvature], share: float, parameters: list[Tensor], gradient: Tensors, start: float, compare: bool
    ) -> None:
        states = [self.state[p] for p in parameters]
        damping = self._damping()

        def curved(direction: Tensors) -> Tensors:
            total = batches[0].product(direction)
            for batch in batches[1:]:
                total = plus(total, batch.product(direction))
            return total if share == 1 else list(torch._foreach_mul(tuple(total), share))

        def damped(direction: Tensors) -> Tensors:
            return plus(curved(direction), direction, damping)

        precondition = self._inverse(curved, parameters, states, damping)
        right = list(torch._foreach_neg(tuple(gradient)))
        warm = None
        if self.warm_start > 0 and float(states[0]["step"]) > 0:
            warm = [s["direction"] * self.warm_start for s in states]
        found = conjugate_gradients(damped, right, warm, precondition, self.max_cg_iterations, self.cg_tolerance)
        for state in states:
            state["step"] += 1
        if not found:
            self._set_damping(4)
            return
        for state, s in zip(states, found[-1].step, strict=True):
            state["direction"].copy_(s)
        if compare:
            self._take_best(batches, parameters, found, gradient, start)
        else:
            self._add(parameters, found[-1].step, 1.0)

    def _inverse(
        self, curved: Callable[[Tensors], Tensors], parameters: list[Tensor], states: list[dict[str, Tensor]], damping: float
    ) -> Callable[[Tensors], Tensors]:
        if self.preconditioner is None:
            return lambda residual: residual
        count = int(states[0]["step"].item())
        signs = random_signs(parameters, self.seed * 1_000_003 + count)
        blocks = [group["blocks"] for group in self._newton_groups() for _ in group["params"]]
        self.preconditioner.update(states, blocks, signs, curved(signs))
        return self.preconditioner.inverse(states, blocks, count + 1, damping)

    def _add(self, parameters: list[Tensor], step: Tensors, factor: float) -> None:
        """Parameters at their old place plus the step, group by group with its lr; weight decay is decoupled."""
        lrs = [group["lr"] for group in self._newton_groups() for _ in group["params"]]
        decays = [group["weight_decay"] for group in self._newton_groups() for _ in group["params"]]
        for p, s, lr, decay in zip(parameters, step, lrs, decays, strict=True):
            if decay:
                p.mul_(1 - lr * decay)
            p.add_(s, alpha=lr * factor)

    def _take_best(
        self, batches: Sequence[Curvature], parameters: list[Tensor], found: list[Iterate], gradient: Tensors, start: float
    ) -> None:
        """The last iterate, an earlier one, or a part of it: the first that lowers the loss. The damping follows the model's
        success."""
        old = [p.clone() for p in parameters]
        damping = self._damping()

        def place(step: Tensors, factor: float) -> None:
            torch._foreach_copy_(parameters, old)
            self._add(parameters, step, factor)

        def loss_at(step: Tensors, factor: float) -> float:
            place(step, factor)
            return torch.stack([b.loss_again() for b in batches]).mean().item()

        chosen = found[-1]
        best = loss_at(chosen.step, 1.0)
        first = best
        for earlier in reversed(found[:-1]):
            value = loss_at(earlier.step, 1.0)
            if not (value < best or not math.isfinite(best)):
                break
            best, chosen = value, earlier
        size, slope = torch.stack([dot(chosen.step, chosen.step), dot(gradient, chosen.step)]).tolist()
        factor = 1.0
        for _ in range(_BACKTRACKS):
            if best <= start + 1e-2 * factor * min(slope, 0.0):
                break
            factor *= 0.5
            best = loss_at(chosen.step, factor)
        taken = best < start
        if taken:
            place(chosen.step, factor)
        else:
            torch._foreach_copy_(parameters, old)
        model = chosen.model - 0.5 * damping * size  # without the damping
        ratio = (first if chosen is found[-1] else best) - start
        ratio = ratio / model if model < 0 and math.isfinite(ratio) else -1.0
        self._set_damping(4 if not taken else 1.5 if ratio < 0.25 else 2 / 3 if ratio > 0.75 else 1)

    @torch.no_grad()
    def _adamw_steps(self) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None] if group["method"] == "adamw" else []
            if not parameters or group["lr"] == 0:
                continue
            states = [self.state[p] for p in parameters]
            adamw(
                parameters, [p.grad for p in parameters if p.grad is not None], [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states], [], [s["step"] for s in states], amsgrad=False, beta1=group["betas"][0],
                beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
            )  # fmt: skip


def _split(params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Groups with a method: those without one are split by the number of dimensions."""
    given = list(params)
    groups: list[dict[str, Any]] = (
        [{"params": given}] if not given or not isinstance(given[0], dict) else [dict(g) for g in given if isinstance(g, dict)]
    )
    for group in groups:
        if group.get("method") is not None:
            yield group
            continue
        members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        matrices = [p for p in members if p.dim() >= 2]
        vectors = [p for p in members if p.dim() < 2]
        for method, some in (("newton", matrices), ("adamw", vectors)):
            if some or (not members and method == "newton"):
                yield {**group, "params": some, "method": method}
