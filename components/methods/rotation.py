"""Rotation: classify by how many quarter turns a photo was rotated.

Gidaris, Singh & Komodakis, Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018.
https://arxiv.org/abs/1803.07728

All four rotations of a photo are in one batch (section 2.2), so that each class is equally frequent in every batch.
Quarter turns need no interpolation, whose artifacts would show the angle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components.config import Fraction, FractionRange
from components.data.augment import View
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone
from components.training.optim import SGD, Optimizer, Steps

ROTATIONS = 4  # counterclockwise, by 0, 90, 180 and 270 degrees


class RotationConfig(MethodConfig):
    """Defaults: the ResNet-50 run of Goyal et al., 2019 (https://arxiv.org/abs/1905.01235), as VISSL states it."""

    crop: FractionRange = (0.08, 1.0)
    flip: Fraction = 0.5
    optimizer: Optimizer = SGD(
        lr=0.1, weight_decay=1e-4, decay_all=True, schedule=Steps(milestones=(30 / 105, 60 / 105, 90 / 105, 100 / 105))
    )  # epochs 30, 60, 90 and 100 of 105; the paper: Nesterov, weight decay 5e-4, 30 %, 60 % and 80 % (CIFAR-10)


class Rotation(Method):
    @staticmethod
    def views(config: RotationConfig, image_size: int) -> tuple[View]:
        return (View(image_size, crop=config.crop, flip=config.flip),)

    def __init__(self, backbone: Backbone, config: RotationConfig) -> None:
        super().__init__(config)
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, ROTATIONS)
        if backbone.has_batch_norm:
            self.needs_full_batch = "batch norm in the backbone uses the statistics of the whole batch"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        upright = batch[0]  # [B, 3, S, S]
        rotated = torch.cat([upright.rot90(turns, (2, 3)) for turns in range(ROTATIONS)])  # [4B, 3, S, S]
        target = torch.arange(ROTATIONS, device=upright.device).repeat_interleave(len(upright))
        logits = self.head(self.backbone(rotated))
        return {"loss": cross_entropy(logits, target), "accuracy": (logits.argmax(1) == target).float().mean()}

    def keep(self) -> Backbone:
        return self.backbone
