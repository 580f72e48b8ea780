"""SimSiam: predict the projection of the other view, which gets no gradient. No momentum encoder, no negatives.

Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021. https://arxiv.org/abs/2011.10566
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from components.config import Fraction, FractionRange
from components.data.augment import View
from components.methods.losses import feature_std, mean_cosine
from components.methods.method import Batch, Method, MethodConfig
from components.methods.view_pairs import moco_v2_view
from components.models.backbone import Backbone
from components.models.heads import mlp
from components.models.resnet import zero_init_residual
from components.training.optim import SGD, Cosine, Optimizer


class SimSiamConfig(MethodConfig):
    """Defaults: section 3, "Baseline settings"; the predictor's rate is constant (table 1 c, main_simsiam.py)."""

    dim: int = Field(2048, ge=1)  # of all three layers of the projector
    predictor_hidden: int = Field(512, ge=1)
    crop: FractionRange = (0.2, 1.0)
    blur: Fraction = 0.5
    optimizer: Optimizer = SGD(
        lr=0.05, weight_decay=1e-4, decay_all=True, schedule=Cosine(), constant_lr=("predictor.",)
    )


class SimSiam(Method):
    needs_full_batch = "batch norm in projector and predictor uses the statistics of the whole batch"

    @staticmethod
    def views(config: SimSiamConfig, image_size: int) -> tuple[View, View]:
        view = moco_v2_view(image_size, config.crop, config.blur)
        return view, view

    def __init__(self, backbone: Backbone, config: SimSiamConfig) -> None:
        super().__init__(config)
        zero_init_residual(backbone)
        dim = config.dim
        self.encoder: Any = nn.Sequential(backbone, mlp(backbone.dim, dim, dim, dim, last_norm="plain"))
        self.predictor = mlp(dim, config.predictor_hidden, dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (self.encoder(view) for view in batch)  # [B, dim], each view with its own batch statistics
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = -(mean_cosine(p1, z2.detach()) + mean_cosine(p2, z1.detach())) / 2  # equation 2
        return {"loss": loss, "feature_std": feature_std(z1)}

    def keep(self) -> Backbone:
        return self.encoder[0]
