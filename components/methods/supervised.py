"""Supervised training: cross-entropy on the labels of the data, as the upper reference for methods without labels.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016. https://arxiv.org/abs/1512.03385, with the rates of
Goyal et al., Accurate, Large Minibatch SGD, 2017. https://arxiv.org/abs/1706.02677
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components.config import FractionRange
from components.data.augment import Jitter, View
from components.data.fields import Labels
from components.data.photos import Photos
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone
from components.training.optim import SGD, Optimizer, Steps


class SupervisedConfig(MethodConfig):
    """Defaults: Goyal et al., section 5.1; colors do not change unless `color_strength` is set."""

    classes: int = Field(0, ge=0)  # 0: those of the data
    crop: FractionRange = (0.08, 1.0)
    color_strength: float = Field(0.0, ge=0)  # of SimCLR's jitter, for data small enough to be memorized
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    optimizer: Optimizer = SGD(
        lr=0.1,
        nesterov=True,
        weight_decay=1e-4,
        schedule=Steps(milestones=(30 / 90, 60 / 90, 80 / 90), warmup=5 / 90),
    )


class Supervised(Method):
    @staticmethod
    def views(config: SupervisedConfig, image_size: int) -> tuple[View, Labels]:
        s = config.color_strength
        jitter = Jitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8) if s else None
        return View(image_size, crop=config.crop, jitter=jitter), Labels()

    @staticmethod
    def resolve(config: SupervisedConfig, photos: Photos) -> SupervisedConfig:
        num_classes = len(np.unique(photos.labels(photos.rows("train", labeled=True)).numpy()))
        if num_classes < 2:
            raise ValueError(
                f"supervised training needs labels, and the train split has {num_classes} class(es); "
                f"put the photos into one folder a class and prepare them again, or choose a method without labels"
            )
        if config.classes not in (0, len(photos.classes)):
            raise ValueError(f"classes {config.classes}, but the data have {len(photos.classes)}; leave classes out")
        return config.model_copy(update={"classes": len(photos.classes)})

    def __init__(self, backbone: Backbone, config: SupervisedConfig) -> None:
        super().__init__(config)
        if not config.classes:
            raise ValueError("classes is 0; allowed: 2 or more, which Supervised.resolve fills in from the data")
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.dim, config.classes)
        if backbone.has_batch_norm:
            self.needs_full_batch = "batch norm in the backbone uses the statistics of the whole batch"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, labels = batch
        logits = self.classifier(self.backbone(pixels))  # [B, classes]
        loss: Any = cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == labels).float().mean()}

    def keep(self) -> Backbone:
        return self.backbone
