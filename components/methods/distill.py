"""Distillation: a small network learns to see photos as a published one does, without labels.

The loss and the views are those of lightly-train's default method (distillationv3), with three differences: the
teacher's features are centered, since those of a CNN all point the same way; patch features are compared with the
teacher's own, not only among themselves; and pooled features can be compared directly, without a queue.
Same crops for teacher and student: Beyer et al., Knowledge Distillation: A Good Teacher Is Patient and Consistent, CVPR
2022. https://arxiv.org/abs/2106.05237
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from components import ranks
from components.config import Fraction, FractionRange
from components.data.augment import Jitter, View
from components.data.fields import Field
from components.methods.auto import QueueLength
from components.methods.losses import l2_normalize, mean_cosine, without_autocast
from components.methods.method import Batch, Method, MethodConfig
from components.methods.teacher_views import PhotoFeatures, PhotoTokens, SameView
from components.models.backbone import Backbone, PublishedBackbone
from components.models.memory import Queue, RunningMean
from components.models.pretrained import PACKAGED
from components.models.published import resolve
from components.models.teacher import Teacher, TeacherConfig, grid_matrix, token_grid
from components.training.optim import AdamW, Cosine, Optimizer


def _default_teacher() -> PublishedBackbone:
    return PublishedBackbone(kind="published", **resolve({"from": PACKAGED, "image_size": 128}))


class DistillConfig(MethodConfig):
    """Defaults: lightly-train's where it has the setting."""

    teacher: TeacherConfig = Setting(default_factory=_default_teacher)
    teacher_sees: Literal["crop", "photo"] = "crop"  # the student's crop, or the whole photo: once, before training
    patch_weight: float = Setting(1.0, ge=0)  # of the loss of patch features
    queue: QueueLength = Setting(8192, ge=0)  # earlier photos to which similarities are compared; 0: features alone
    temperature: float = Setting(0.07, gt=0)  # of the similarities
    crop: FractionRange = (0.14, 1.0)
    color_strength: float = Setting(0.5, ge=0)
    blur: Fraction = 1.0
    optimizer: Optimizer = AdamW(
        lr=2e-4, scaling="sqrt", weight_decay=0.04, schedule=Cosine(warmup=0.1), clip=1.0
    )  # 5e-4 for 1,536


class Distill(Method):
    resample: Tensor  # [N, tokens of the student], to the coarser of the two grids
    resample_targets: Tensor  # [N, tokens of the teacher]

    @staticmethod
    def views(config: DistillConfig, image_size: int) -> tuple[Field, ...]:
        s = config.color_strength
        jitter = Jitter(0.8 * s, 0.8 * s, 0.4 * s, 0.2 * s, p=0.8) if s else None
        view = View(image_size, crop=config.crop, jitter=jitter, gray=0.2, blur=config.blur)
        if config.teacher_sees == "photo":
            features = PhotoFeatures(config.teacher, with_maps=config.patch_weight > 0)
            tokens = PhotoTokens(config.teacher, view, view_index=0)
            return (view, features, tokens) if features.with_maps else (view, features)
        if config.teacher.image_size == image_size:
            return (view,)
        return view, SameView(replace(view, size=config.teacher.image_size), view_index=0)

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world_size: int) -> None:  # noqa: ARG004
        if config.queue and not batch_size <= config.queue <= photos:
            raise ValueError(
                f"queue {config.queue}; allowed: 0, or the batch_size {batch_size} to the {photos} training photos; "
                f"try {max(batch_size, photos // 4)}"
            )

    def __init__(self, backbone: Backbone, config: DistillConfig) -> None:
        super().__init__(config)
        teacher = Teacher(config.teacher)
        dim = teacher.backbone.dim
        backbone.teacher = teacher.origin
        self.backbone, self.head = backbone, nn.Linear(backbone.dim, dim)
        self.center = RunningMean(dim)
        self.queue: Any = Queue(config.queue, dim) if config.queue else None
        self.pending: list[Tensor] = []  # the teacher's features of this step, to be pushed into the queue
        self.teacher = teacher if config.teacher_sees == "crop" else None
        self.patch_head = self._patch_head(teacher.backbone) if config.patch_weight else None
        if backbone.has_batch_norm:
            self.needs_full_batch = "batch norm in the backbone uses the statistics of the whole batch"

    def _patch_head(self, teacher: Backbone) -> nn.Linear:
        """Returns the layer that predicts the teacher's tokens. Also sets what its loss needs."""
        if self.backbone.patches:
            raise ValueError(
                f"a vit or resnet with backbone.patches {self.backbone.patches} has no patch features of its own; try "
                "patch_weight: 0"
            )
        (student_side, width), (teacher_side, dim) = token_grid(self.backbone), token_grid(teacher)
        for name, side in (("resample", student_side), ("resample_targets", teacher_side)):  # both to the coarser grid
            self.register_buffer(name, grid_matrix(side, min(student_side, teacher_side)), persistent=False)
        self.patch_center = RunningMean(dim)
        return nn.Linear(width, dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, *teacher_fields = batch
        target, target_tokens = self.targets(pixels, teacher_fields)
        if self.patch_head is None:
            loss = self.pooled_loss(self.backbone(pixels), target)
            return {"loss": loss}
        features, tokens = self.backbone.whole_and_tokens(pixels)
        pooled = self.pooled_loss(features, target)
        target_tokens = self.resample_targets @ target_tokens  # [B, N, D]
        self.patch_center.record(target_tokens.flatten(0, 1))
        predicted = self.patch_head(self.resample @ tokens)
        patch = 1 - mean_cosine(predicted, target_tokens - self.patch_center.value)
        return {"loss": pooled + self.config.patch_weight * patch, "pooled_loss": pooled, "patch_loss": patch}

    def targets(self, pixels: Tensor, teacher_fields: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the teacher's features [B, D] and tokens [B, N, D].

        teacher_fields: the crop in the teacher's size, if that is not the student's; or the outputs of `teacher_views`
        for the whole photo.
        """
        if self.teacher is not None:
            features, tokens = self.teacher(teacher_fields[0] if teacher_fields else pixels)
            return features, tokens
        return teacher_fields[0], teacher_fields[-1]

    def pooled_loss(self, features: Tensor, target: Tensor) -> Tensor:
        """Returns the loss of the student's features [B, d] for the teacher's [B, D]."""
        self.center.record(target)
        predicted, target = self.head(features), target - self.center.value
        if self.queue is None:
            return 1 - mean_cosine(predicted, target)
        target = l2_normalize(target)
        self.pending.append(target)
        return similarity_loss(predicted, target, self.queue.items, self.config.temperature)

    def after_step(self) -> None:
        self.center.update()
        if self.patch_head is not None:
            self.patch_center.update()
        if self.queue is not None:
            self.queue.push(ranks.gather(torch.cat(self.pending)))
            self.pending.clear()

    def keep(self) -> Backbone:
        return self.backbone


@without_autocast
def similarity_loss(predicted: Tensor, target: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Returns how far the student's similarities to the queue [K, D] are from the teacher's, as distributions: [].

    predicted: [B, D]; target: unit vectors [B, D]. The mean Kullback-Leibler divergence of softmax(x · queue / τ).
    """
    logits, target_logits = (x @ queue.T / temperature for x in (l2_normalize(predicted), target))
    loss: Tensor = kl_div(
        log_softmax(logits, dim=-1), log_softmax(target_logits, dim=-1), log_target=True, reduction="batchmean"
    )
    return loss
