"""DINO: predict, from each crop of a photo, the output of a teacher (an EMA of the student) for its large crops.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021. https://arxiv.org/abs/2104.14294
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from components.data.augment import View
from components.methods.distillation import Distillation, Targets, crops, describe_targets, temperature
from components.methods.losses import across_views
from components.methods.method import Batch, Method
from components.methods.multicrop import check_local_size, forward_by_size
from components.models.backbone import Backbone
from components.models.heads import PrototypeHead
from components.models.memory import EMA
from components.training.optim import cosine


class DINOConfig(Distillation):
    """Defaults: those of Distillation, which are DINO's."""

    batch_norm: bool = False  # in the head: main_dino.py, --use_bn_in_head


class DINO(Method):
    @staticmethod
    def views(config: DINOConfig, image_size: int) -> list[View]:
        return crops(config, image_size)

    def __init__(self, backbone: Backbone, config: DINOConfig) -> None:
        super().__init__(config)
        if config.local_crops:
            check_local_size(backbone, config.local_size)
        head = PrototypeHead(backbone.dim, config.hidden, config.bottleneck, config.prototypes, norm=config.batch_norm)
        self.student: Any = nn.Sequential(backbone, head)
        self.teacher = EMA(self.student)
        self.targets = Targets(config, config.prototypes)
        if backbone.has_batch_norm:
            self.needs_full_batch = "batch norm in the backbone uses the statistics of the whole batch"
        elif config.batch_norm:
            self.needs_full_batch = "batch norm in the head uses the statistics of the whole batch"
        elif config.targets == "sinkhorn":
            self.needs_full_batch = "Sinkhorn assigns the whole batch evenly to the prototypes"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        backbone, head = self.student
        logits = head(forward_by_size(backbone, batch)).unflatten(0, (len(batch), -1))  # [V, B, K]
        teacher_logits = self.teacher(torch.cat(list(batch[:2])))  # [2·B, K], of the global crops only
        targets = self.targets(teacher_logits, temperature(self.config, self.progress))
        loss = across_views(targets.unflatten(0, (2, -1)), logits, self.config.student_temperature)
        return {"loss": loss, **describe_targets(targets, loss), "center_norm": self.targets.center.mean.norm()}

    def after_backward(self) -> None:
        if self.progress < self.config.freeze_last:
            self.student[1].last.weight.grad = None

    def after_step(self) -> None:
        self.targets.center.update()
        self.teacher.update(self.student, cosine(self.config.momentum, 1.0, self.progress))

    def keep(self) -> Backbone:
        """Returns the teacher's backbone, which is better than the student's throughout training (section 5.2)."""
        return self.teacher.module[0]
