"""BYOL: predict the output of a target network, an EMA of the online network, for the other view. No negatives.

Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020.
https://arxiv.org/abs/2006.07733
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from components.config import Fraction
from components.data.augment import View
from components.methods.losses import feature_std, mean_cosine
from components.methods.method import Batch, Method, MethodConfig
from components.methods.view_pairs import ViewPair
from components.models.backbone import Backbone
from components.models.heads import mlp
from components.models.memory import EMA
from components.models.resnet import zero_init_residual
from components.training.optim import LARS, Cosine, Optimizer, cosine


class BYOLConfig(MethodConfig):
    """Defaults: section 3.3, the run of 1,000 epochs; for 300 epochs: momentum 0.99, lr 0.3, weight decay 1e-6."""

    hidden: int = Field(4096, ge=1)
    dim: int = Field(256, ge=1)
    momentum: Fraction = 0.996  # rises to 1 by a cosine
    views: ViewPair = ViewPair()
    optimizer: Optimizer = LARS(lr=0.2, weight_decay=1.5e-6, schedule=Cosine(warmup=0.01))  # 10 of 1,000 epochs


class BYOL(Method):
    needs_full_batch = "batch norm in projector and predictor uses the statistics of the whole batch"

    @staticmethod
    def views(config: BYOLConfig, image_size: int) -> tuple[View, View]:
        first, second = config.views.build(image_size)
        return replace(first, blur_kernel="tenth"), replace(second, blur_kernel="tenth")  # appendix B

    def __init__(self, backbone: Backbone, config: BYOLConfig) -> None:
        super().__init__(config)
        zero_init_residual(backbone)
        hidden, dim = config.hidden, config.dim
        projector = mlp(backbone.dim, hidden, dim, bias=True, last_bias=False)
        self.online: Any = nn.Sequential(backbone, projector)
        self.predictor = mlp(dim, hidden, dim, bias=True, last_bias=False)
        self.target = EMA(self.online)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view1, view2 = batch
        z1, z2 = self.online(view1), self.online(view2)  # [B, dim], each view with its own batch statistics
        cosine1 = mean_cosine(self.predictor(z1), self.target(view2))
        cosine2 = mean_cosine(self.predictor(z2), self.target(view1))
        return {"loss": 4 - 2 * (cosine1 + cosine2), "feature_std": feature_std(z1)}  # equation 2, both orders

    def after_step(self) -> None:
        self.target.update(self.online, cosine(self.config.momentum, 1.0, self.progress))

    def keep(self) -> Backbone:
        return self.online[0]
