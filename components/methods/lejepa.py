"""LeJEPA: views of a picture should agree, and all embeddings together should look like a standard normal cloud.

Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, 2025.
https://arxiv.org/abs/2511.08544

No teacher, no stop-gradient, no schedule but the rate's: what keeps embeddings apart is a test of normality (Epps and
Pulley, 1983) along random directions, SIGReg, which grows with the number of pictures it has seen fail.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from components import ranks
from components.config import Fraction, FractionRange
from components.data.augment import Jitter, View
from components.methods.losses import full, precise
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone, ViT
from components.models.heads import mlp
from components.training.optim import AdamW, Cosine, Optimizer


class LeJEPAConfig(MethodConfig):
    """Defaults: the authors' MINIMAL.md, for 800 epochs of a batch of 256."""

    global_views: int = Field(4, ge=2)
    local_views: int = Field(0, ge=0)  # more looks, smaller ones
    local_size: int = Field(96, ge=1)  # pixels
    crop: FractionRange = (0.08, 1.0)
    local_crop: FractionRange = (0.05, 0.3)
    embedding: int = Field(512, ge=1)  # of the linear layer between backbone and projector
    hidden: int = Field(2048, ge=1)
    dim: int = Field(16, ge=1)
    slices: int = Field(256, ge=1)
    knots: int = Field(17, ge=2)
    reach: float = Field(3.0, gt=0)  # of the knots: frequencies 0 … reach, the negative ones being the same again
    weight: Fraction = 0.02  # of SIGReg; what agreement has less
    optimizer: Optimizer = AdamW(
        lr=2e-3, weight_decay=0.05, decay_all=True, schedule=Cosine(warmup=1 / 800, end=0.5)
    )  # one of 800 epochs; down to 1e-3


class LeJEPA(Method):
    needs_full_batch = "its loss is a statistic of the whole batch"

    @staticmethod
    def views(config: LeJEPAConfig, image_size: int) -> list[View]:
        jitter = Jitter(0.8, 0.8, 0.8, 0.2, p=0.8)
        whole = View(image_size, crop=config.crop, jitter=jitter, gray=0.2, blur=0.5, blur_kernel=7, solarize=0.2)
        part = replace(whole, size=config.local_size, crop=config.local_crop)
        return [whole] * config.global_views + [part] * config.local_views

    def __init__(self, backbone: Backbone, config: LeJEPAConfig) -> None:
        super().__init__(config)
        if isinstance(backbone, ViT) and config.local_views and config.local_size % (p := backbone.config.patch_size):
            raise ValueError(
                f"local_size {config.local_size} is not a multiple of patch_size {p}; try "
                f"{max(1, config.local_size // p) * p}"
            )
        self.backbone = backbone
        self.embedding = nn.Linear(backbone.dim, config.embedding)
        nn.init.trunc_normal_(self.embedding.weight, std=0.02)  # as timm's classifier, which it is in MINIMAL.md
        nn.init.zeros_(self.embedding.bias)
        self.projector = mlp(config.embedding, config.hidden, config.hidden, config.dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        count = self.config.global_views
        sizes = [batch[:count], batch[count:]] if self.config.local_views else [batch]
        features = torch.cat([self.backbone(torch.cat(list(views))) for views in sizes])  # [V·B, D]
        z = self.projector(self.embedding(features)).unflatten(0, (len(batch), -1))  # [V, B, K]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        agreement = (z - z[:count].mean(0)).square().mean()
        # the slices of a step: the same on every rank and after a restart, others at the next step
        seed = torch.Generator().manual_seed(int(self.progress * 2**53))
        normality = sigreg(z, self.config.slices, self.config.knots, self.config.reach, seed)
        weight = self.config.weight
        loss = (1 - weight) * agreement + weight * normality
        return {"loss": loss, "agreement": agreement, "normality": normality}

    def keep(self) -> Backbone:
        return self.backbone


@precise
def sigreg(z: Tensor, slices: int, knots: int, reach: float, seed: torch.Generator) -> Tensor:
    """How far each view's embeddings z [V, B, K] are from a standard normal cloud, over all ranks: [].

    Along each of `slices` random directions: N ∫ |φ̂(t) - exp(-t² / 2)|² exp(-t² / 2) dt over -reach … reach, where φ̂ is
    the empirical characteristic function of all N projections; the mean over views and directions. The integral is a
    trapezoid rule on 0 … reach, twice, for the integrand is even.
    """
    z = full(z)
    directions = torch.randn(z.shape[-1], slices, generator=seed).to(z.device, z.dtype, non_blocking=True)
    directions = directions / directions.norm(dim=0)
    t = torch.linspace(0, reach, knots, dtype=z.dtype, device=z.device)
    normal = (-t.square() / 2).exp()
    weights = torch.full_like(t, 2 * reach / (knots - 1))
    weights[:1] = weights[-1:] = reach / (knots - 1)
    angles = (z @ directions)[..., None] * t  # [V, B, slices, knots]
    mine = torch.stack([angles.cos().mean(1), angles.sin().mean(1)])  # [2, V, slices, knots]
    real, imaginary = ranks.gather(mine[None]).mean(0)  # a function of all ranks' pictures, with their gradients
    distance = ((real - normal).square() + imaginary.square()) @ (weights * normal)  # [V, slices]
    return distance.mean() * z.shape[1] * ranks.world()
