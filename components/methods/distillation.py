"""The parts that DINO, iBOT and DINOv2 share: crops, the teacher's temperature, and targets from its logits.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021. https://arxiv.org/abs/2104.14294
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softmax

from components.config import Fraction, FractionRange, Positive
from components.data.augment import Jitter, View
from components.methods.auto import Prototypes
from components.methods.losses import entropies, sinkhorn
from components.methods.method import MethodConfig
from components.methods.multicrop import local_side
from components.models.memory import Center
from components.training.optim import AdamW, Cosine, Optimizer


class Distillation(MethodConfig):
    """Defaults: DINO's section 3.2 and main_dino.py, for 300 epochs of batches of 1,024."""

    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    prototypes: Prototypes = Field(65536, ge=2)
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)  # at the start, and after the warm-up
    temperature_warmup: Fraction = 0.1  # 30 of 300 epochs
    targets: Literal["centering", "sinkhorn"] = "centering"  # DINOv2 uses Sinkhorn
    center_momentum: Fraction = 0.9
    momentum: Fraction = 0.996  # of the teacher; rises to 1 by a cosine
    freeze_last: Fraction = 1 / 300  # fraction of the run in which the prototypes are not trained: one epoch
    global_crop: FractionRange = (0.4, 1.0)
    local_crop: FractionRange = (0.05, 0.4)
    local_crops: int = Field(8, ge=0)
    local_size: int | None = Field(None, ge=2)  # pixels; None: 96 of 224, to the nearest 8
    color_strength: float = Field(1.0, ge=0)
    blur: tuple[Fraction, Fraction, Fraction] = (1.0, 0.1, 0.5)  # of the first, the second, the local crops (BYOL's)
    solarize: Fraction = 0.2  # of the second
    optimizer: Optimizer = AdamW(
        lr=5e-4,
        weight_decay=0.04,
        final_weight_decay=0.4,
        schedule=Cosine(warmup=1 / 30, end=5e-4),  # 10 of 300 epochs; down to 1e-6 of 2e-3
        clip=3.0,
        clip_each=True,
    )


def crops(config: Distillation, image_size: int) -> list[View]:
    """Returns two global crops, then the local ones."""
    s = config.color_strength
    jitter = Jitter(0.4 * s, 0.4 * s, 0.2 * s, 0.1 * s, p=0.8)
    first, second, local = config.blur
    side = local_side(config.local_size, image_size)
    local_view = View(side, crop=config.local_crop, jitter=jitter, gray=0.2, blur=local)
    return [
        View(image_size, crop=config.global_crop, jitter=jitter, gray=0.2, blur=first),
        View(image_size, crop=config.global_crop, jitter=jitter, gray=0.2, blur=second, solarize=config.solarize),
        *[local_view] * config.local_crops,
    ]


def temperature(config: Distillation, progress: float) -> float:
    """Returns the teacher's temperature at `progress` 0 … 1: linear over the warm-up, then constant."""
    start, end = config.teacher_temperature
    if progress >= config.temperature_warmup:
        return end
    return start + (end - start) * progress / config.temperature_warmup


@torch.no_grad()
def describe_targets(targets: Tensor, cross_entropy: Tensor) -> dict[str, Tensor]:
    """Returns scalars for the log, as fractions of log K: those of `entropies`, and KL(target || student).

    targets: probabilities [B, K]; cross_entropy: its mean over the same targets, each with as many crops as any other.
    It is the sum of the targets' entropy and the divergence. At a divergence of 0 the student has nothing to learn, a
    collapse (DINO, section 5.3).
    """
    entropy, usage = entropies(targets)
    divergence = cross_entropy / math.log(targets.shape[-1]) - entropy
    return {"entropy": entropy, "kl_divergence": divergence, "prototype_usage": usage}


class Targets(nn.Module):
    """Turns the teacher's logits into target probabilities, by a moving center or by Sinkhorn.

    Either prevents that one prototype wins every photo; a low temperature prevents uniform targets (section 3.1).
    """

    def __init__(self, config: Distillation, prototypes: int) -> None:
        super().__init__()
        self.uses_sinkhorn = config.targets == "sinkhorn"
        self.center = Center(prototypes, config.center_momentum)

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Returns target probabilities [B, K] of logits [B, K], and records the logits for the update of the center."""
        self.center.record(logits)
        if self.uses_sinkhorn:
            return sinkhorn(logits, temperature)
        return softmax((logits.to(self.center.mean.dtype) - self.center.mean) / temperature, dim=-1)
