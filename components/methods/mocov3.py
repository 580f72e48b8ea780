"""MoCo v3: MoCo without a queue, in both directions, with a predictor, and what keeps a ViT stable.

Chen, Xie & He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021.
https://arxiv.org/abs/2104.02057; reference code: moco-v3 (moco/builder.py, vits.py).

A step of the paper moves the slow copy between queries and keys; here that is after the step, as in BYOL.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components import ranks
from components.config import Fraction
from components.data.augment import View
from components.methods.looks import Pair
from components.methods.losses import precise, spread, unit
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone, ViT
from components.models.heads import mlp, sincos
from components.models.memory import EMA
from components.models.resnet import zero_init_residual
from components.training.optim import AdamW, Cosine, Optimizer, cosine


class MoCoV3Config(MethodConfig):
    """Defaults: ViT-S/16 of 300 epochs (section 4 and CONFIG.md). ResNet-50's other values are in the method's card."""

    layers: int = Field(3, ge=2)  # of the projector; ResNet-50: 2
    hidden: int = Field(4096, ge=1)  # section 4.1
    dim: int = Field(256, ge=1)  # section 4.1
    predictor_norm: bool = True  # batch norm after the predictor's last layer; ResNet-50: false
    stop_grad_conv1: bool = True  # section 4.2: random patch embedding, never trained (of a ViT)
    temperature: float = Field(0.2, gt=0)  # section 4.1; ResNet-50: 1.0
    momentum: Fraction = 0.99  # section 4.1; rises to 1 by a cosine (--moco-m-cos)
    looks: Pair = Pair()
    optimizer: Optimizer = AdamW(  # section 4.1; main_moco.py decays all parameters
        lr=1.5e-4, weight_decay=0.1, decay_all=True, schedule=Cosine(warmup=40 / 300)
    )


@precise
def contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Algorithm 1: each query [B, D] must find its key among the keys of all ranks, which get no gradient. []"""
    everyone = ranks.gather(unit(k).detach())  # [W·B, D]
    target = torch.arange(len(q), device=q.device) + ranks.rank() * len(q)
    return 2 * temperature * cross_entropy(unit(q) @ everyone.T / temperature, target)


class MoCoV3(Method):
    needs_full_batch = "each picture is told from all others of the batch, and the heads have batch norm"

    @staticmethod
    def views(config: MoCoV3Config, image_size: int) -> tuple[View, View]:
        return config.looks.views(image_size)

    @staticmethod
    def check(config: Any, pictures: int, batch_size: int, world: int) -> None:  # noqa: ARG004
        if batch_size < 2 * world:
            raise ValueError(f"batch_size {batch_size} leaves no other picture to tell from; try 256")

    def __init__(self, backbone: Backbone, config: MoCoV3Config) -> None:
        super().__init__(config)
        zero_init_residual(backbone)
        if isinstance(backbone, ViT):
            still(backbone, config.stop_grad_conv1)
        hidden, dim = config.hidden, config.dim
        projector = mlp(backbone.dim, *[hidden] * (config.layers - 1), dim, last_norm="plain")
        self.query: Any = nn.Sequential(backbone, projector)
        last_norm: Any = "plain" if config.predictor_norm else "none"
        self.predictor = mlp(dim, hidden, dim, last_norm=last_norm, last_bias=False)
        self.key = EMA(self.query)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        one, two = batch
        z1, z2 = self.query(one), self.query(two)  # each view normalized by its own statistics
        k1, k2 = self.key(one), self.key(two)
        t = self.config.temperature
        loss = contrast(self.predictor(z1), k2, t) + contrast(self.predictor(z2), k1, t)
        return {"loss": loss, "spread": spread(z1)}

    def after_step(self) -> None:
        self.key.update(self.query, cosine(self.config.momentum, 1.0, self.progress))

    def keep(self) -> Backbone:
        return self.query[0]


def still(vit: ViT, patches: bool) -> None:  # noqa: FBT001
    """Fixed sine positions (none for the class token), and a patch embedding that stays random if asked."""
    embeddings, config = vit.trunk.embeddings, vit.config
    positions = sincos(config.image_size // config.patch_size, config.width)
    with torch.no_grad():
        embeddings.position_embeddings.copy_(torch.cat([torch.zeros(1, config.width), positions]))
        embeddings.patch_embeddings.projection.bias.zero_()
    embeddings.position_embeddings.requires_grad_(False)  # noqa: FBT003
    embeddings.patch_embeddings.requires_grad_(not patches)
