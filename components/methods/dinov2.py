"""DINOv2: iBOT's two losses with separate heads, Sinkhorn targets, and a loss (KoLeo) that spreads the features.

Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024. https://arxiv.org/abs/2304.07193
KoLeo: Sablayrolles et al., Spreading Vectors for Similarity Search, ICLR 2019. https://arxiv.org/abs/1806.03198
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components import ranks
from components.config import Fraction, FractionRange
from components.data.augment import View
from components.data.fields import Draws
from components.methods.auto import Prototypes
from components.methods.blocks import DRAWS_PER_MASK, block_masks
from components.methods.distillation import Distillation, Targets, crops, describe_targets, temperature
from components.methods.losses import across_views, l2_normalize, masked_patch_cross_entropy, without_autocast
from components.methods.method import Batch, Method
from components.methods.multicrop import check_local_size, forward_by_size
from components.models.backbone import Backbone, patches_of
from components.models.heads import PrototypeHead
from components.models.memory import EMA
from components.training.optim import AdamW, Cosine, Optimizer, cosine


class DINOv2Config(Distillation):
    """Defaults: configs/train/vitl14.yaml (ImageNet-22k), 500 "epochs" of 1,250 steps; sqrt scaling of the rate."""

    bottleneck: int = Field(384, ge=1)  # of the class token's head
    patch_bottleneck: int = Field(256, ge=1)
    prototypes: Prototypes = Field(131072, ge=2)
    separate_heads: bool = True  # section 4, untying head weights; False: one head for both tasks, as in iBOT
    targets: Literal["centering", "sinkhorn"] = "sinkhorn"
    temperature_warmup: Fraction = 30 / 500  # 30 epochs
    momentum: Fraction = 0.994
    freeze_last: Fraction = 1 / 500  # one epoch
    global_crop: FractionRange = (0.32, 1.0)
    local_crop: FractionRange = (0.05, 0.32)
    mask_probability: Fraction = 0.5  # of a global crop
    mask_ratio: FractionRange = (0.1, 0.5)
    patch_weight: float = Field(1.0, ge=0)
    koleo_weight: float = Field(0.1, ge=0)  # of each global crop
    optimizer: Optimizer = AdamW(
        lr=1e-4,  # 2e-4 for 1,024
        scaling="sqrt",
        weight_decay=0.04,
        final_weight_decay=0.2,
        schedule=Cosine(warmup=80 / 500, end=5e-3),  # 80 epochs; down to 1e-6 of 2e-4
        clip=3.0,
    )


@without_autocast
def koleo(features: Tensor) -> Tensor:
    """Returns the mean over [B, D] features of -log of the distance to the nearest other feature of all ranks: [].

    Features are normalized to length 1 (section 4, KoLeo). The distance has a gradient, the search has none.
    """
    local = l2_normalize(features)
    gathered = ranks.gather(local)
    with torch.no_grad():
        cosines = local @ gathered.T
        cosines.diagonal(ranks.rank() * len(local)).fill_(-2.0)  # not itself
        nearest = cosines.argmax(1)
    # eps as in dinov2/loss/koleo_loss.py: the loss of two equal features would be infinite
    return -torch.log(nn.functional.pairwise_distance(local, gathered[nearest], eps=1e-8) + 1e-8).mean()


class DINOv2(Method):
    needs_full_batch = "KoLeo searches the nearest feature in the whole batch"

    @staticmethod
    def views(config: DINOv2Config, image_size: int) -> list[View | Draws]:
        views = [replace(view, blur_kernel=9) for view in crops(config, image_size)]  # data/transforms.py
        return [*views, Draws(DRAWS_PER_MASK), Draws(DRAWS_PER_MASK)]

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world_size: int) -> None:  # noqa: ARG004
        if config.koleo_weight and batch_size < 2:
            raise ValueError(f"batch_size {batch_size} leaves no other photo for KoLeo; try 256")

    def __init__(self, backbone: Backbone, config: DINOv2Config) -> None:
        super().__init__(config)
        patches_of(backbone, "dinov2")
        if config.local_crops:
            check_local_size(backbone, config.local_size)
        head = PrototypeHead(backbone.dim, config.hidden, config.bottleneck, config.prototypes)
        self.student: Any = nn.ModuleList([backbone, head])
        if config.separate_heads:
            patch_head = PrototypeHead(backbone.dim, config.hidden, config.patch_bottleneck, config.prototypes)
            self.student.append(patch_head)
        self.teacher = EMA(self.student)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.dim))  # three axes: weight decay skips vectors
        self.targets = Targets(config, config.prototypes)
        self.patch_targets = Targets(config, config.prototypes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (backbone, head, *_), config = self.student, self.config
        views, draws = batch[:-2], torch.cat(list(batch[-2:]))
        global_views = torch.cat(list(views[:2]))  # [2·B, 3, S, S]
        side = backbone.config.image_size // backbone.config.patch_size
        masked = block_masks(draws, side, config.mask_probability, config.mask_ratio)  # [2·B, N]
        # early in the step, because it waits for the GPU; nothing else does
        positions = masked.flatten().nonzero()[:, 0]  # [M]
        tokens = backbone.encode(backbone.embed(global_views, masked, self.mask_token))  # [2·B, 1 + N, D]
        local_features = [forward_by_size(backbone.class_token, views[2:])] if len(views) > 2 else []
        logits = head(torch.cat([tokens[:, 0], *local_features])).unflatten(0, (len(views), -1))  # [V, B, K]
        patch_logits = self.student[-1](tokens[:, 1:].flatten(0, 1)[positions])  # [M, K]
        targets, patch_targets = self.teacher_targets(global_views, positions)
        t = config.student_temperature
        class_loss = across_views(targets.unflatten(0, (2, -1)), logits, t)
        patch_loss = masked_patch_cross_entropy(patch_targets, patch_logits, masked, positions, t)
        koleo_loss = sum((koleo(crop) for crop in tokens[:, 0].chunk(2)), start=class_loss.new_zeros(()))
        loss = class_loss + config.patch_weight * patch_loss + config.koleo_weight * koleo_loss
        metrics = {"class_loss": class_loss, "patch_loss": patch_loss, "koleo": koleo_loss}
        return {"loss": loss, **metrics, **describe_targets(targets, class_loss)}

    @torch.no_grad()
    def teacher_targets(self, global_views: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns targets of the class tokens [2·B, K] and the masked patches [M, K]. The teacher sees all patches."""
        teacher_backbone, class_head, *_ = self.teacher.module
        tokens = teacher_backbone.sequence(global_views)  # [2·B, 1 + N, D]
        class_logits = class_head(tokens[:, 0])
        patch_logits = self.teacher.module[-1](tokens[:, 1:].flatten(0, 1)[positions])
        t = temperature(self.config, self.progress)
        return self.targets(class_logits, t), self.patch_targets(patch_logits, t)

    def after_backward(self) -> None:
        if self.progress < self.config.freeze_last:
            for head in self.student[1:]:
                head.last.weight.grad = None

    def after_step(self) -> None:
        self.targets.center.update()
        self.patch_targets.center.update()
        self.teacher.update(self.student, cosine(self.config.momentum, 1.0, self.progress))

    def keep(self) -> Backbone:
        """Returns the teacher's backbone."""
        return self.teacher.module[0]
