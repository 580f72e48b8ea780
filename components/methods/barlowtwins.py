"""Barlow Twins: over a batch, each output should agree with itself in the other view and with no other output.

Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021.
https://arxiv.org/abs/2103.03230
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from components import ranks
from components.data.augment import View
from components.methods.looks import Pair
from components.methods.losses import full, precise
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone
from components.models.chunks import encode, must_not_mix
from components.models.heads import mlp
from components.models.resnet import zero_init_residual
from components.training.optim import LARS, Cosine, Optimizer


class BarlowTwinsConfig(MethodConfig):
    """Defaults: sections 2.2 and 2.3, and main.py for the rates, which the paper gives for its batch alone."""

    dim: int = Field(8192, ge=2)  # of all three layers of the projector
    redundancy: float = Field(0.0051, ge=0)  # lambda
    looks: Pair = Pair()
    chunk: int = Field(0, ge=0)  # pictures encoded at a time, 0: all; for a batch larger than the device
    optimizer: Optimizer = LARS(
        lr=0.2, plain_lr=0.0048, weight_decay=1e-6, schedule=Cosine(warmup=0.01, end=0.001)
    )  # 10 of 1,000 epochs


@precise
def decorrelate(a: Tensor, b: Tensor, redundancy: float) -> tuple[Tensor, Tensor]:
    """Equation 1, from outputs normalized over the batch, [B, D] on each rank: (loss [], mean of c's diagonal []).

    Outputs of all ranks are gathered with their gradients: a correlation that is summed over ranks without them gives
    each rank a world'th of its gradient.
    """
    a, b = ranks.gather(full(a)), ranks.gather(full(b))
    c = a.T @ b / len(a)  # [D, D]
    agreed = c.diagonal()
    off = c.square().sum() - agreed.square().sum()
    return (1 - agreed).square().sum() + redundancy * off, agreed.detach().mean()


class BarlowTwins(Method):
    needs_full_batch = "the loss is a correlation over the whole batch; set chunk instead"

    @staticmethod
    def views(config: BarlowTwinsConfig, image_size: int) -> tuple[View, View]:
        return config.looks.views(image_size)

    def __init__(self, backbone: Backbone, config: BarlowTwinsConfig) -> None:
        super().__init__(config)
        must_not_mix(backbone, config.chunk)
        self.backbone = backbone
        zero_init_residual(backbone)
        self.projector = mlp(backbone.dim, config.dim, config.dim, config.dim, last_norm="plain")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        a, b = (self.projector(encode(self.backbone, view, self.config.chunk)) for view in batch)  # [B, D]
        loss, agreed = decorrelate(a, b, self.config.redundancy)
        return {"loss": loss, "agreement": agreed}

    def keep(self) -> Backbone:
        return self.backbone
