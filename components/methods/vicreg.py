"""VICReg: make outputs equal for two views, varied over the batch and uncorrelated with each other.

Bardes, Ponce & LeCun, VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR 2022.
https://arxiv.org/abs/2105.04906
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from components import ranks
from components.data.augment import View
from components.methods.losses import at_least_float32, without_autocast
from components.methods.method import Batch, Method, MethodConfig
from components.methods.view_pairs import ViewPair
from components.models.backbone import Backbone
from components.models.chunks import encode, must_not_mix
from components.models.heads import mlp
from components.models.resnet import zero_init_residual
from components.training.optim import LARS, Cosine, Optimizer


class VICRegConfig(MethodConfig):
    """Defaults: sections 4.1 and 4.2; the last learning rate: main_vicreg.py."""

    dim: int = Field(8192, ge=2)  # of all three layers of the expander
    invariance: float = Field(25.0, ge=0)  # lambda
    variance: float = Field(25.0, ge=0)  # mu
    covariance: float = Field(1.0, ge=0)  # nu
    views: ViewPair = ViewPair()
    chunk: int = Field(0, ge=0)  # photos encoded at a time, 0: all; for a batch that does not fit on the device
    optimizer: Optimizer = LARS(
        lr=0.2, weight_decay=1e-6, schedule=Cosine(warmup=0.01, end=0.001)
    )  # 10 of 1,000 epochs


@without_autocast
def vicreg_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns invariance, variance and covariance of outputs [B, D] on each rank: three []. Equations 1 to 5.

    Invariance is a mean over this rank's photos, which DDP averages over ranks; variance and covariance are those of
    the batch of all ranks, gathered with gradient. As in the official code, variance is the mean over both views,
    covariance their sum.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    invariance = mse_loss(a, b)
    variance = covariance = a.new_zeros(())
    for view in (a, b):
        x = ranks.gather(view)
        x = x - x.mean(0)
        std = (x.square().sum(0) / (len(x) - 1) + 1e-4).sqrt()  # [D]
        variance = variance + (1 - std).relu().mean() / 2
        cov = x.T @ x / (len(x) - 1)  # [D, D]
        covariance = covariance + (cov.square().sum() - cov.diagonal().square().sum()) / x.shape[1]
    return invariance, variance, covariance


class VICReg(Method):
    needs_full_batch = "variance and covariance are those of the whole batch; set chunk instead"

    @staticmethod
    def views(config: VICRegConfig, image_size: int) -> tuple[View, View]:
        return config.views.build(image_size)

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world_size: int) -> None:  # noqa: ARG004
        if not config.invariance or not config.variance:
            raise ValueError("without invariance or without variance all photos get the same features; try 25 for both")

    def __init__(self, backbone: Backbone, config: VICRegConfig) -> None:
        super().__init__(config)
        must_not_mix(backbone, config.chunk)
        self.backbone = backbone
        zero_init_residual(backbone)
        self.expander = mlp(backbone.dim, config.dim, config.dim, config.dim, bias=True, last_bias=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        a, b = (self.expander(encode(self.backbone, view, self.config.chunk)) for view in batch)  # [B, D]
        invariance, variance, covariance = vicreg_terms(a, b)
        weights = self.config
        loss = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
        return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}

    def keep(self) -> Backbone:
        return self.backbone
