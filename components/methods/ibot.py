"""iBOT: DINO's loss for class tokens and masked patches; the teacher, which sees all patches, gives the targets.

Zhou et al., Image BERT Pre-Training with Online Tokenizer, ICLR 2022. https://arxiv.org/abs/2111.07832
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Fraction, FractionRange
from components.data.augment import View
from components.data.fields import Draws
from components.methods.auto import Prototypes
from components.methods.blocks import DRAWS_PER_MASK, block_masks
from components.methods.distillation import Distillation, Targets, crops, describe_targets, temperature
from components.methods.losses import across_views, masked_patch_cross_entropy
from components.methods.method import Batch, Method
from components.methods.multicrop import check_local_size, forward_by_size
from components.models.backbone import Backbone, patches_of
from components.models.heads import PrototypeHead
from components.models.memory import EMA
from components.training.optim import AdamW, Cosine, Optimizer, cosine


class IBOTConfig(Distillation):
    """Defaults: the README's command for ViT-S/16, 800 epochs of batches of 1,024; the script's own defaults differ."""

    prototypes: Prototypes = Field(8192, ge=2)
    temperature_warmup: Fraction = 30 / 800  # 30 epochs
    freeze_last: Fraction = 1 / 800  # one epoch
    global_crop: FractionRange = (0.25, 1.0)
    local_crop: FractionRange = (0.05, 0.25)
    local_crops: int = Field(10, ge=0)
    mask_probability: Fraction = 0.5  # of a global crop: pred_ratio 0 or 0.3
    mask_ratio: FractionRange = (0.1, 0.5)  # 0.3 ± 0.2
    patch_weight: float = Field(1.0, ge=0)
    optimizer: Optimizer = AdamW(
        lr=5e-4,
        weight_decay=0.04,
        final_weight_decay=0.4,
        schedule=Cosine(warmup=10 / 800, end=5e-4),  # 10 epochs; down to 1e-6 of 2e-3
        clip=3.0,
        clip_each=True,
    )


class IBOT(Method):
    @staticmethod
    def views(config: IBOTConfig, image_size: int) -> list[View | Draws]:
        return [*crops(config, image_size), Draws(DRAWS_PER_MASK), Draws(DRAWS_PER_MASK)]

    def __init__(self, backbone: Backbone, config: IBOTConfig) -> None:
        super().__init__(config)
        patches_of(backbone, "ibot")
        if config.local_crops:
            check_local_size(backbone, config.local_size)
        head = PrototypeHead(
            backbone.dim, config.hidden, config.bottleneck, config.prototypes
        )  # of class token and patches
        self.student: Any = nn.Sequential(backbone, head)
        self.teacher = EMA(self.student)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.dim))  # three axes: weight decay skips vectors
        self.targets = Targets(config, config.prototypes)
        self.patch_targets = Targets(config, config.prototypes)  # with a center of their own
        if config.targets == "sinkhorn":
            self.needs_full_batch = "Sinkhorn assigns the whole batch evenly to the prototypes"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (backbone, head), config = self.student, self.config
        views, draws = batch[:-2], torch.cat(list(batch[-2:]))
        global_views = torch.cat(list(views[:2]))  # [2·B, 3, S, S]
        side = backbone.config.image_size // backbone.config.patch_size
        masked = block_masks(draws, side, config.mask_probability, config.mask_ratio)  # [2·B, N]
        # early in the step, because it waits for the GPU; nothing else does
        positions = masked.flatten().nonzero()[:, 0]  # [M]
        tokens = backbone.encode(backbone.embed(global_views, masked, self.mask_token))  # [2·B, 1 + N, D]
        local_features = [forward_by_size(backbone.class_token, views[2:])] if len(views) > 2 else []
        logits = head(torch.cat([tokens[:, 0], *local_features])).unflatten(0, (len(views), -1))  # [V, B, K]
        patch_logits = head(tokens[:, 1:].flatten(0, 1)[positions])  # [M, K]
        with torch.no_grad():  # the teacher sees all patches
            teacher_backbone, teacher_head = self.teacher.module
            teacher_logits = teacher_head(teacher_backbone.sequence(global_views))  # [2·B, 1 + N, K]
        teacher_temperature = temperature(config, self.progress)
        targets = self.targets(teacher_logits[:, 0], teacher_temperature)
        patch_targets = self.patch_targets(teacher_logits[:, 1:].flatten(0, 1), teacher_temperature)[
            positions
        ]  # [M, K]
        t = config.student_temperature
        class_loss = across_views(targets.unflatten(0, (2, -1)), logits, t)
        patch_loss = masked_patch_cross_entropy(patch_targets, patch_logits, masked, positions, t)
        metrics = {"class_loss": class_loss, "patch_loss": patch_loss, **describe_targets(targets, class_loss)}
        return {"loss": class_loss + config.patch_weight * patch_loss, **metrics}

    def after_backward(self) -> None:
        if self.progress < self.config.freeze_last:
            self.student[1].last.weight.grad = None

    def after_step(self) -> None:
        self.targets.center.update()
        self.patch_targets.center.update()
        self.teacher.update(self.student, cosine(self.config.momentum, 1.0, self.progress))

    def keep(self) -> Backbone:
        """Returns the teacher's backbone."""
        return self.teacher.module[0]
