"""SimCLR: two views of a picture should be closer to each other than to any other picture of the batch.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.
https://arxiv.org/abs/2002.05709
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from components.data.augment import Jitter, View
from components.methods.losses import nt_xent
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone
from components.models.heads import mlp
from components.training.optim import SGD, Cosine, Optimizer


class SimCLRConfig(MethodConfig):
    """Defaults: section 2.1 and appendix A; for a batch well under 4,096 SGD stands in for LARS at the same rate."""

    hidden: int = 2048
    dim: int = 128
    temperature: float = Field(0.1, gt=0)
    crop: tuple[float, float] = (0.08, 1.0)
    color_strength: float = 1.0  # 0.5 for small images (appendix B.9)
    blur: float = Field(0.5, ge=0, le=1)  # 0 for small images (appendix B.9)
    optimizer: Optimizer = SGD(lr=0.3, weight_decay=1e-6, schedule=Cosine(warmup=0.1))


class SimCLR(Method):
    coupled = "each picture is told from all others of the batch"

    @staticmethod
    def views(config: SimCLRConfig, image_size: int) -> tuple[View, View]:
        s = config.color_strength
        jitter = Jitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8)
        view = View(image_size, crop=config.crop, jitter=jitter, gray=0.2, blur=config.blur)
        return view, view

    @staticmethod
    def check(config: Any, pictures: int, batch_size: int, world: int) -> None:  # noqa: ARG004
        if batch_size // world < 2:
            raise ValueError(
                f"batch_size {batch_size} over {world} processes leaves no other picture to tell from; try 256"
            )

    def __init__(self, backbone: Backbone, config: SimCLRConfig) -> None:
        super().__init__(config)
        self.backbone = backbone
        self.projector = mlp(backbone.dim, config.hidden, config.dim, norm=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        a, b = self.projector(self.backbone(torch.cat(list(batch)))).chunk(2)
        return {"loss": nt_xent(a, b, self.config.temperature)}

    def keep(self) -> Backbone:
        return self.backbone
