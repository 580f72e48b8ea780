"""MoCo v3: MoCo without a queue, symmetric, with a predictor, and with two measures that keep a ViT stable.

Chen, Xie & He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021.
https://arxiv.org/abs/2104.02057; official code: moco-v3 (moco/builder.py, vits.py).

The official code updates the momentum encoder between queries and keys of a step. Here it is updated after the step, as
in BYOL.
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
from components.methods.losses import feature_std, l2_normalize, without_autocast
from components.methods.method import Batch, Method, MethodConfig
from components.methods.view_pairs import ViewPair
from components.models.backbone import Backbone, ViT
from components.models.heads import mlp, sincos
from components.models.memory import EMA
from components.models.resnet import zero_init_residual
from components.training.optim import AdamW, Cosine, Optimizer, cosine


class MoCoV3Config(MethodConfig):
    """Defaults: ViT-S/16 for 300 epochs (section 4 and CONFIG.md). ResNet-50's values are on the method's card."""

    layers: int = Field(3, ge=2)  # of the projector; ResNet-50: 2
    hidden: int = Field(4096, ge=1)  # section 4.1
    dim: int = Field(256, ge=1)  # section 4.1
    predictor_norm: bool = True  # batch norm after the predictor's last layer; ResNet-50: false
    stop_grad_conv1: bool = True  # section 4.2: the patch embedding of a ViT stays random
    temperature: float = Field(0.2, gt=0)  # section 4.1; ResNet-50: 1.0
    momentum: Fraction = 0.99  # section 4.1; rises to 1 by a cosine (--moco-m-cos)
    views: ViewPair = ViewPair()
    optimizer: Optimizer = AdamW(  # section 4.1; main_moco.py decays all parameters
        lr=1.5e-4, weight_decay=0.1, decay_all=True, schedule=Cosine(warmup=40 / 300)
    )


@without_autocast
def contrastive_loss(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Returns 2 · temperature times the cross-entropy of each query's key among the keys of all ranks: [].

    q, k: [B, D]; keys get no gradient. Algorithm 1.
    """
    all_keys = ranks.gather(l2_normalize(k).detach())  # [W·B, D]
    target = torch.arange(len(q), device=q.device) + ranks.rank() * len(q)
    return 2 * temperature * cross_entropy(l2_normalize(q) @ all_keys.T / temperature, target)


class MoCoV3(Method):
    needs_full_batch = "the other photos of the batch are the negatives, and the heads have batch norm"

    @staticmethod
    def views(config: MoCoV3Config, image_size: int) -> tuple[View, View]:
        return config.views.build(image_size)

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world_size: int) -> None:  # noqa: ARG004
        if batch_size < 2 * world_size:
            raise ValueError(f"batch_size {batch_size} leaves no other photo as a negative; try 256")

    def __init__(self, backbone: Backbone, config: MoCoV3Config) -> None:
        super().__init__(config)
        zero_init_residual(backbone)
        if isinstance(backbone, ViT) and backbone.origin is None:  # trained weights know their own positions
            freeze_embeddings(backbone, patches=config.stop_grad_conv1)
        hidden, dim = config.hidden, config.dim
        projector = mlp(backbone.dim, *[hidden] * (config.layers - 1), dim, last_norm="plain")
        self.query: Any = nn.Sequential(backbone, projector)
        last_norm: Any = "plain" if config.predictor_norm else "none"
        self.predictor = mlp(dim, hidden, dim, last_norm=last_norm, last_bias=False)
        self.key = EMA(self.query)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view1, view2 = batch
        z1, z2 = self.query(view1), self.query(view2)  # [B, dim], each view with its own batch statistics
        k1, k2 = self.key(view1), self.key(view2)
        t = self.config.temperature
        loss = contrastive_loss(self.predictor(z1), k2, t) + contrastive_loss(self.predictor(z2), k1, t)
        return {"loss": loss, "feature_std": feature_std(z1)}

    def after_step(self) -> None:
        self.key.update(self.query, cosine(self.config.momentum, 1.0, self.progress))

    def keep(self) -> Backbone:
        return self.query[0]


def freeze_embeddings(vit: ViT, *, patches: bool) -> None:
    """Sets fixed sine positions (0 for the class token); with `patches`, also freezes the random patch embedding."""
    embeddings, config = vit.trunk.embeddings, vit.config
    positions = sincos(config.image_size // config.patch_size, config.width)
    with torch.no_grad():
        embeddings.position_embeddings.copy_(torch.cat([torch.zeros(1, config.width), positions]))
        embeddings.patch_embeddings.projection.bias.zero_()
    embeddings.position_embeddings.requires_grad_(False)  # noqa: FBT003
    embeddings.patch_embeddings.requires_grad_(not patches)
