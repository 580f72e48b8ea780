"""DIET: every photo is a class of its own; classify augmented views by the photo they come from.

Balestriero, Unsupervised Learning on a DIET: Datum IndEx as Target Free of Self-Supervision, Reconstruction, Projector
Head, 2023. https://arxiv.org/abs/2302.10260
Going on from published weights with few photos: Rodas et al., DIET-CP, 2025. https://arxiv.org/abs/2509.06990
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components.config import Fraction, FractionRange
from components.data.augment import Jitter, View
from components.data.fields import Index
from components.data.photos import Photos
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone
from components.training.optim import AdamW, Cosine, Optimizer


class DIETConfig(MethodConfig):
    """Defaults: section 3 and appendix of the paper, for batches of 256."""

    photos: int = Field(0, ge=0)  # classes; 0: as many as the data have
    label_smoothing: float = Field(0.8, ge=0, lt=1)
    crop: FractionRange = (0.08, 1.0)
    color_strength: float = Field(0.5, ge=0)  # of SimCLR's jitter: 0.4, 0.4, 0.4, 0.1
    blur: Fraction = 0.5
    optimizer: Optimizer = AdamW(lr=1e-3, weight_decay=0.05, schedule=Cosine(warmup=0.1))


class DIET(Method):
    @staticmethod
    def views(config: DIETConfig, image_size: int) -> tuple[View, Index]:
        s = config.color_strength
        jitter = Jitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8) if s else None
        return View(image_size, crop=config.crop, jitter=jitter, gray=0.2, blur=config.blur), Index()

    @staticmethod
    def resolve(config: DIETConfig, photos: Photos) -> DIETConfig:
        if config.photos not in (0, len(photos)):
            raise ValueError(f"photos {config.photos}, but the data have {len(photos)}; leave photos out")
        return config.model_copy(update={"photos": len(photos)})

    def __init__(self, backbone: Backbone, config: DIETConfig) -> None:
        super().__init__(config)
        if not config.photos:
            raise ValueError("photos is 0; allowed: 1 or more, which DIET.resolve fills in from the data")
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.dim, config.photos, bias=False)  # equation 1
        if backbone.has_batch_norm:
            self.needs_full_batch = "batch norm in the backbone uses the statistics of the whole batch"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, index = batch
        logits = self.classifier(self.backbone(pixels))  # [B, photos]
        loss: Any = cross_entropy(logits, index, label_smoothing=self.config.label_smoothing)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == index).float().mean()}

    def keep(self) -> Backbone:
        return self.backbone
