"""Optimizers and schedules as papers state them: learning rates for a batch of 256, schedules over the whole run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Decay, Fraction, Strict


class Constant(Strict):
    kind: Literal["constant"] = "constant"


class Cosine(Strict):
    """Linear warm-up over a fraction of the run, then half a cosine down to `end` times the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1)
    end: Fraction = 0.0


class Steps(Strict):
    """Linear warm-up over a fraction of the run, then times `factor` at each milestone, also a fraction of the run."""

    kind: Literal["steps"] = "steps"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    factor: float = 0.1
    warmup: float = Field(0.0, ge=0, lt=1)


Schedule = Annotated[Constant | Cosine | Steps, Field(discriminator="kind")]


class _Common(Strict):
    lr: float = Field(gt=0)  # for a batch of 256
    scaling: Literal["linear", "sqrt"] = "linear"  # of the rate with batch_size / 256 (Goyal 2017; SimCLR, B.1)
    plain_lr: float | None = Field(None, gt=0)  # of biases and norms, if they have their own
    constant_lr: tuple[str, ...] = ()  # prefixes of parameter names whose rate does not follow the schedule
    weight_decay: float = Field(0.0, ge=0)
    final_weight_decay: float | None = Field(None, ge=0)  # reached at the end of the run by a cosine (DINO)
    decay_all: bool = False  # decay biases and norms too, as the oldest scripts do
    schedule: Schedule = Cosine()
    clip: float | None = Field(None, gt=0)  # norm of the gradient
    clip_each: bool = False  # of each parameter, not of all together (DINO); an attention's q, k and v count as one


class SGD(_Common):
    kind: Literal["sgd"] = "sgd"
    momentum: Decay = 0.9
    nesterov: bool = False


class AdamW(_Common):
    kind: Literal["adamw"] = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.999)


class LARS(_Common):
    """decay_all: adapts biases and norms too.

    classic_momentum: the learning rate is part of the velocity, as in the paper and in SimCLR's code. Otherwise it
    scales the velocity, as in torch's SGD and in the code of BYOL, Barlow Twins, VICReg and SwAV. The two differ
    while the rate changes: during warm-up classic momentum moves the weights less.
    """

    kind: Literal["lars"] = "lars"
    momentum: Decay = 0.9
    trust: float = Field(1e-3, gt=0)
    classic_momentum: bool = False


Optimizer = Annotated[SGD | AdamW | LARS, Field(discriminator="kind")]


class Lars(torch.optim.Optimizer):
    """Each layer moves in proportion to its own norm: You et al., 2017, https://arxiv.org/abs/1708.03888.

    g += decay · w;  g *= trust · ‖w‖ / ‖g‖ where both are above 0, then
    classic momentum: v = momentum · v + lr · g;  w -= v  (the paper's algorithm 1, SimCLR's lars_optimizer.py)
    otherwise:        v = momentum · v + g;  w -= lr · v  (Barlow Twins' main.py, BYOL's optimizers.py)
    Groups with adapt=False are plain SGD. Never waits for the device.
    """

    def __init__(self, groups: Any, config: LARS) -> None:
        self.classic_momentum = config.classic_momentum
        defaults = {"lr": config.lr, "momentum": config.momentum, "trust": config.trust}
        super().__init__(groups, {**defaults, "weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = torch._foreach_add([p.grad for p in params], params, alpha=group["weight_decay"])
            if group["adapt"]:
                weight_norm, update_norm = (torch.stack(torch._foreach_norm(x)) for x in (params, list(updates)))
                nonzero = (weight_norm > 0) & (update_norm > 0)
                ratio = torch.where(nonzero, group["trust"] * weight_norm / update_norm, 1.0)
                torch._foreach_mul_(updates, list(ratio.unbind()))
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            velocity = [self.state[p]["momentum_buffer"] for p in params]
            update_factor, velocity_factor = (group["lr"], 1.0) if self.classic_momentum else (1.0, group["lr"])
            torch._foreach_mul_(velocity, group["momentum"])
            torch._foreach_add_(velocity, updates, alpha=update_factor)
            torch._foreach_add_(params, velocity, alpha=-velocity_factor)


def build(
    module: nn.Module,
    config: SGD | AdamW | LARS,
    batch_size: int,
    factors: Mapping[str, float] | None = None,
    frozen: float = 0.0,
) -> torch.optim.Optimizer:
    """Returns the optimizer of the trainable parameters, its rates scaled to the batch size.

    factors: of the learning rate, by the parameter's name; in the share `frozen` of the run those do not move.

    Each group has the `peak` rate that the schedule multiplies, and whether it is `scheduled` and `decayed`.
    Raises ValueError if no parameter's name begins with a prefix in config.constant_lr.
    """
    relative = batch_size / 256
    scale = relative if config.scaling == "linear" else math.sqrt(relative)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for prefix in config.constant_lr:
        if not any(name.startswith(prefix) for name in trainable):
            prefixes = ", ".join(sorted({name.partition(".")[0] + "." for name in trainable}))
            raise ValueError(f"constant_lr: no parameter's name begins with {prefix!r}; there are: {prefixes}")
    factors = factors or {}
    kinds: dict[tuple[bool, bool, float | None], list[tuple[str, nn.Parameter]]] = {}
    for name, p in trainable.items():
        scheduled = not name.startswith(config.constant_lr or ("\0",))
        kinds.setdefault((p.ndim > 1, scheduled, factors.get(name)), []).append((name, p))
    groups = []
    for (multi_dim, scheduled, factor), params in kinds.items():
        peak = (
            scale
            * (1.0 if factor is None else factor)
            * (config.lr if multi_dim or config.plain_lr is None else config.plain_lr)
        )
        decayed = multi_dim or config.decay_all
        decay = config.weight_decay if decayed else 0.0
        group = {"params": params, "lr": peak, "peak": peak, "scheduled": scheduled, "decayed": decayed}
        group["frozen"] = 0.0 if factor is None else frozen  # until this share of the run
        groups.append({**group, "weight_decay": decay, **({"adapt": decayed} if isinstance(config, LARS) else {})})
    lr = config.lr * scale
    if isinstance(config, LARS):
        return Lars(groups, config)
    if isinstance(config, SGD):
        # not fused: that fails if a parameter gets its first gradient (a frozen layer) later than the others
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, foreach=True)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, config: SGD | AdamW | LARS, progress: float) -> None:
    """Set the learning rates and weight decays of all groups to their values at `progress` 0 … 1."""
    factor = multiplier(config.schedule, progress)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * (factor if group["scheduled"] else 1.0) * (progress >= group["frozen"])
        if group["decayed"] and config.final_weight_decay is not None:
            group["weight_decay"] = cosine(config.weight_decay, config.final_weight_decay, progress)


def clip(optimizer: torch.optim.Optimizer, config: SGD | AdamW | LARS) -> None:
    """Scale gradients down to a norm of config.clip, all together or each parameter alone.

    Each alone, the q, k and v projections of an attention count as the one parameter that they are in the references.
    """
    if config.clip is None:
        return
    named_params = [
        pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"], strict=True)
    ]
    grads = {name: p.grad for name, p in named_params if p.grad is not None}
    if not config.clip_each:
        torch.nn.utils.clip_grad_norm_([p for _, p in named_params], config.clip)
        return
    group_names = [re.sub(r"\b[qkv]_proj\b", "qkv", name) for name in grads]
    norms: dict[str, list[Tensor]] = {}
    for name, norm in zip(group_names, torch._foreach_norm(list(grads.values())), strict=True):
        norms.setdefault(name, []).append(norm)
    total = {name: torch.stack(parts).norm() if len(parts) > 1 else parts[0] for name, parts in norms.items()}
    factors = (config.clip / (torch.stack([total[name] for name in group_names]) + 1e-6)).clamp_(max=1)
    torch._foreach_mul_(list(grads.values()), list(factors.unbind()))


def cosine(start: float, end: float, progress: float) -> float:
    """Returns the value at `progress` 0 … 1 of half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def multiplier(schedule: Any, progress: float) -> float:
    """Returns the factor of the peak rate at `progress` 0 … 1."""
    if isinstance(schedule, Constant):
        return 1.0
    if progress < schedule.warmup:
        return float(progress / schedule.warmup)
    if isinstance(schedule, Steps):
        return float(schedule.factor ** sum(progress >= milestone for milestone in schedule.milestones))
    return cosine(1.0, schedule.end, (progress - schedule.warmup) / (1 - schedule.warmup))
