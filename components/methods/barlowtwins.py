"""Barlow Twins: make the cross-correlation matrix of the outputs for two views the identity.

Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021.
https://arxiv.org/abs/2103.03230
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

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


class BarlowTwinsConfig(MethodConfig):
    """Defaults: sections 2.2 and 2.3; learning rates: main.py (the paper gives them for its batch size alone)."""

    dim: int = Field(8192, ge=2)  # of all three layers of the projector
    redundancy: float = Field(0.0051, ge=0)  # lambda
    views: ViewPair = ViewPair()
    chunk: int = Field(0, ge=0)  # photos encoded at a time, 0: all; for a batch that does not fit on the device
    optimizer: Optimizer = LARS(
        lr=0.2, plain_lr=0.0048, weight_decay=1e-6, schedule=Cosine(warmup=0.01, end=0.001)
    )  # 10 of 1,000 epochs


@without_autocast
def cross_correlation_loss(a: Tensor, b: Tensor, redundancy: float) -> tuple[Tensor, Tensor]:
    """Returns equation 1's loss and the mean of the diagonal of the cross-correlation matrix: ([], []).

    a, b: [B, D] on each rank, normalized over the batch. The outputs of all ranks are gathered with their gradients:
    a correlation that is summed over W ranks without them has a gradient of 1 / W on each.
    """
    a, b = ranks.gather(at_least_float32(a)), ranks.gather(at_least_float32(b))
    correlation = a.T @ b / len(a)  # [D, D]
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + redundancy * off_diagonal, diagonal.detach().mean()


class BarlowTwins(Method):
    needs_full_batch = "the loss is a correlation over the whole batch; set chunk instead"

    @staticmethod
    def views(config: BarlowTwinsConfig, image_size: int) -> tuple[View, View]:
        return config.views.build(image_size)

    def __init__(self, backbone: Backbone, config: BarlowTwinsConfig) -> None:
        super().__init__(config)
        must_not_mix(backbone, config.chunk)
        self.backbone = backbone
        zero_init_residual(backbone)
        self.projector = mlp(backbone.dim, config.dim, config.dim, config.dim, last_norm="plain")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        a, b = (self.projector(encode(self.backbone, view, self.config.chunk)) for view in batch)  # [B, D]
        loss, mean_correlation = cross_correlation_loss(a, b, self.config.redundancy)
        return {"loss": loss, "mean_correlation": mean_correlation}

    def keep(self) -> Backbone:
        return self.backbone
