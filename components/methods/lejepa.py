"""LeJEPA: make the embeddings of a photo's views equal, and the distribution of all embeddings standard normal.

Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, 2025.
https://arxiv.org/abs/2511.08544

There is no teacher and no stop-gradient. Collapse is prevented by SIGReg alone: a test of normality (Epps and Pulley,
1983) along random directions, whose statistic grows with the number of photos.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from components import ranks
from components.config import Fraction, FractionRange
from components.data.augment import Jitter, View
from components.methods.losses import at_least_float32, without_autocast
from components.methods.method import Batch, Method, MethodConfig
from components.methods.multicrop import check_local_size, forward_by_size
from components.models.backbone import Backbone
from components.models.heads import mlp
from components.training.optim import AdamW, Cosine, Optimizer


class LeJEPAConfig(MethodConfig):
    """Defaults: the authors' MINIMAL.md, for 800 epochs with a batch of 256."""

    global_views: int = Field(4, ge=2)
    local_views: int = Field(0, ge=0)  # smaller views in addition
    local_size: int = Field(96, ge=1)  # pixels
    crop: FractionRange = (0.08, 1.0)
    local_crop: FractionRange = (0.05, 0.3)
    embedding: int = Field(512, ge=1)  # of the linear layer between backbone and projector
    hidden: int = Field(2048, ge=1)
    dim: int = Field(16, ge=1)
    slices: int = Field(256, ge=1)
    knots: int = Field(17, ge=2)
    reach: float = Field(3.0, gt=0)  # of the knots: frequencies 0 … reach; the integrand is even
    weight: Fraction = 0.02  # of SIGReg; invariance has the weight 1 - weight
    optimizer: Optimizer = AdamW(
        lr=2e-3, weight_decay=0.05, decay_all=True, schedule=Cosine(warmup=1 / 800, end=0.5)
    )  # one of 800 epochs; down to 1e-3


class LeJEPA(Method):
    needs_full_batch = "SIGReg is a statistic of the whole batch"

    @staticmethod
    def views(config: LeJEPAConfig, image_size: int) -> list[View]:
        jitter = Jitter(0.8, 0.8, 0.8, 0.2, p=0.8)
        global_view = View(image_size, crop=config.crop, jitter=jitter, gray=0.2, blur=0.5, blur_kernel=7, solarize=0.2)
        local_view = replace(global_view, size=config.local_size, crop=config.local_crop)
        return [global_view] * config.global_views + [local_view] * config.local_views

    def __init__(self, backbone: Backbone, config: LeJEPAConfig) -> None:
        super().__init__(config)
        if config.local_views:
            check_local_size(backbone, config.local_size)
        self.backbone = backbone
        self.embedding = nn.Linear(backbone.dim, config.embedding)
        nn.init.trunc_normal_(self.embedding.weight, std=0.02)  # as timm's classifier, which it is in MINIMAL.md
        nn.init.zeros_(self.embedding.bias)
        self.projector = mlp(config.embedding, config.hidden, config.hidden, config.dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        num_global = self.config.global_views
        features = forward_by_size(self.backbone, batch)  # [V·B, D]
        z = self.projector(self.embedding(features)).unflatten(0, (len(batch), -1))  # [V, B, K]
        z = at_least_float32(z)
        invariance = (z - z[:num_global].mean(0)).square().mean()
        # the directions of a step are the same on every rank and after a restart, and change with every step
        generator = torch.Generator().manual_seed(int(self.progress * 2**53))
        normality = sigreg(z, self.config.slices, self.config.knots, self.config.reach, generator)
        weight = self.config.weight
        loss = (1 - weight) * invariance + weight * normality
        return {"loss": loss, "invariance": invariance, "sigreg": normality}

    def keep(self) -> Backbone:
        return self.backbone


@without_autocast
def sigreg(z: Tensor, slices: int, knots: int, reach: float, generator: torch.Generator) -> Tensor:
    """Returns the distance of each view's embeddings z [V, B, K] of all ranks from a standard normal distribution: [].

    Along each of `slices` random directions: N ∫ |φ̂(t) - exp(-t² / 2)|² exp(-t² / 2) dt over -reach … reach, where φ̂ is
    the empirical characteristic function of all N projections; the mean over views and directions. The integral is a
    trapezoid rule on 0 … reach, twice, for the integrand is even.
    """
    z = at_least_float32(z)
    directions = torch.randn(z.shape[-1], slices, generator=generator).to(z.device, z.dtype, non_blocking=True)
    directions = directions / directions.norm(dim=0)
    t = torch.linspace(0, reach, knots, dtype=z.dtype, device=z.device)
    normal = (-t.square() / 2).exp()  # the characteristic function of a normal distribution
    weights = torch.full_like(t, 2 * reach / (knots - 1))
    weights[:1] = weights[-1:] = reach / (knots - 1)
    angles = (z @ directions)[..., None] * t  # [V, B, slices, knots]
    local = torch.stack([angles.cos().mean(1), angles.sin().mean(1)])  # [2, V, slices, knots]
    real, imaginary = ranks.gather(local[None]).mean(0)  # over the photos of all ranks, with gradient
    distance = ((real - normal).square() + imaginary.square()) @ (weights * normal)  # [V, slices]
    return distance.mean() * z.shape[1] * ranks.world_size()
