"""Optimizers and schedules, as a paper would state them: rates for a batch of 256, schedules over the whole run."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from components.config import Strict


class Constant(Strict):
    kind: Literal["constant"] = "constant"


class Cosine(Strict):
    """Linear warm-up over a share of the run, then half a cosine down to `end` times the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1)
    end: float = Field(0.0, ge=0, le=1)


class Steps(Strict):
    """Times `factor` at each milestone, a share of the run."""

    kind: Literal["steps"] = "steps"
    milestones: tuple[float, ...]
    factor: float = 0.1


Schedule = Annotated[Constant | Cosine | Steps, Field(discriminator="kind")]


class _Common(Strict):
    lr: float = Field(gt=0)  # for a batch of 256; scaled linearly
    weight_decay: float = Field(0.0, ge=0)
    decay_all: bool = False  # also biases and norms, as the oldest scripts do
    schedule: Schedule = Cosine()
    clip: float | None = Field(None, gt=0)  # norm of the whole gradient


class SGD(_Common):
    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)


class AdamW(_Common):
    kind: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)


Optimizer = Annotated[SGD | AdamW, Field(discriminator="kind")]


def build(module: nn.Module, config: SGD | AdamW, batch_size: int) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters, its rates scaled by batch_size / 256 (Goyal et al., 2017)."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1 or config.decay_all]
    plain = [p for p in trainable if p.ndim <= 1 and not config.decay_all]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, config.weight_decay), (plain, 0.0))
        if params
    ]
    lr = config.lr * batch_size / 256
    if isinstance(config, SGD):
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, fused=True)


def cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def multiplier(schedule: Any, progress: float) -> float:
    """Of the peak rate at `progress` 0 … 1."""
    if isinstance(schedule, Steps):
        return float(schedule.factor ** sum(progress >= milestone for milestone in schedule.milestones))
    if isinstance(schedule, Cosine):
        if progress < schedule.warmup:
            return progress / schedule.warmup
        return cosine(1.0, schedule.end, (progress - schedule.warmup) / (1 - schedule.warmup))
    return 1.0
