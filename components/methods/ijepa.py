"""I-JEPA: from what is left of a picture, predict the features of four blocks of it, not their pixels.

Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture, CVPR 2023.
https://arxiv.org/abs/2301.08243

Blocks differ in size from picture to picture, tensors do not: what a picture has less of is there, but nobody looks at
it. (The reference code draws one size a batch and cuts all contexts to the shortest: a picture's loss then depends
on the others of its batch, and what is low in the picture is dropped first.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

from components.config import Fraction, FractionRange, PositiveRange
from components.data.augment import View
from components.data.fields import Draws
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone, patches_of
from components.models.heads import Blocks, plain_start, sincos
from components.models.memory import EMA
from components.training.optim import AdamW, Cosine, Optimizer

STEPS = 32  # of scale and of aspect ratio: as fine as blocks of whole patches can tell apart


class IJEPAConfig(MethodConfig):
    """Defaults: section 3 and appendix A; configs/in1k_vith14_ep300.yaml."""

    targets: int = Field(4, ge=1)
    target_scale: FractionRange = (0.15, 0.2)  # of the picture's area
    target_ratio: PositiveRange = (0.75, 1.5)  # height to width
    context_scale: FractionRange = (0.85, 1.0)  # square; the targets are cut out of it
    predictor_dim: int = Field(384, ge=4)
    predictor_depth: int = Field(12, ge=1)
    momentum: Fraction = 0.996  # to 1, linearly
    crop: FractionRange = (0.3, 1.0)  # and nothing else, not even flip
    optimizer: Optimizer = AdamW(
        lr=1.25e-4, weight_decay=0.04, final_weight_decay=0.4, schedule=Cosine(warmup=40 / 300, end=1e-3)
    )  # 1e-3 for 2,048; 40 of 300 epochs; down to 1e-6


class IJEPA(Method):
    sizes: Tensor
    context_sizes: Tensor
    positions: Tensor

    @staticmethod
    def views(config: IJEPAConfig, image_size: int) -> tuple[View, Draws]:
        return View(image_size, crop=config.crop, flip=0.0), Draws(3 * (config.targets + 1))

    def __init__(self, backbone: Backbone, config: IJEPAConfig) -> None:
        super().__init__(config)
        self.backbone = vit = patches_of(backbone, "ijepa")
        vit.pool = "mean"  # no loss reads the class token
        vit.fix_positions()
        sizes = block_sizes(vit.side, config.target_scale, config.target_ratio)
        context_sizes = block_sizes(vit.side, config.context_scale, (1.0, 1.0))
        self.longest = int(sizes.prod(1).max())  # patches of a target
        if sizes.prod(1).min() < 2:
            raise ValueError(
                f"a grid of {vit.side} x {vit.side} patches is too small: a target of {config.target_scale} of it "
                f"may be a single patch; allowed by the paper's target_scale: 4 x 4 and more; try a smaller "
                f"backbone.patch_size"
            )
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("context_sizes", context_sizes, persistent=False)
        width = config.predictor_dim
        self.target = EMA(vit)
        self.narrow = nn.Linear(vit.dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)  # three axes: weight decay skips vectors
        self.predictor = Blocks(width, config.predictor_depth, vit.config.heads)
        self.widen = nn.Linear(width, vit.dim)
        self.narrow.apply(plain_start)
        self.widen.apply(plain_start)
        self.register_buffer("positions", sincos(vit.side, width), persistent=False)  # [N, W]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, draws = batch
        context, targets = self.blocks(draws)  # [B, N], [B, M, N]
        places = targets.byte().argsort(dim=2, descending=True, stable=True)[:, :, : self.longest]  # [B, M, T]
        counted = targets.gather(2, places)
        error = smooth_l1_loss(
            self.predict(pixels, context, places, counted), self.goal(pixels, places), reduction="none"
        )
        each = (error.mean(-1) * counted).sum(2) / counted.sum(2)  # [B, M]
        return {"loss": each.mean(), "context": context.float().mean()}

    def blocks(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3 (M + 1)] -> what is context [B, N], and what each target [B, M, N].

        On the smallest grids the targets may, once in thousands of pictures, leave no context but the class token.
        """
        side, (first, rest) = self.backbone.side, draws.unflatten(1, (-1, 3)).split([1, self.config.targets], dim=1)
        targets = block(rest, self.sizes, side)
        return block(first, self.context_sizes, side)[:, 0] & ~targets.any(1), targets

    @torch.no_grad()
    def goal(self, pixels: Tensor, places: Tensor) -> Tensor:
        """The slow copy's features at places [B, M, T], each of mean 0 and deviation 1: [B, M, T, D]."""
        x = self.target.module.tokens(pixels)  # of the whole picture [B, N, D]
        return take(layer_norm(x, x.shape[-1:]), places)

    def predict(self, pixels: Tensor, context: Tensor, places: Tensor, counted: Tensor) -> Tensor:
        """Features at places [B, M, T], of the context [B, N] alone, each block by itself: [B, M, T, D]."""
        seen = torch.cat([torch.ones_like(context[:, :1]), context], dim=1)  # and the class token
        x = self.backbone.encode(self.backbone.embed(pixels), seen)[:, 1:]  # [B, N, D]
        x = self.narrow(x) + self.positions
        asked = self.mask_token + self.positions[places]  # [B, M, T, W]
        blocks = places.shape[1]
        both = torch.cat([x[:, None].expand(-1, blocks, -1, -1), asked.to(x.dtype)], dim=2)  # [B, M, N + T, W]
        seen = torch.cat([context[:, None].expand(-1, blocks, -1), counted], dim=2)
        found = self.predictor(both.flatten(0, 1), seen.flatten(0, 1))[:, x.shape[1] :]
        return self.widen(found).unflatten(0, (-1, blocks))

    def after_step(self) -> None:
        momentum = self.config.momentum + (1 - self.config.momentum) * self.progress
        self.target.update(self.backbone, momentum)

    def keep(self) -> Any:
        return self.target.module


def block_sizes(side: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Height and width in patches of blocks whose area and aspect ratio are evenly spread: int64 [STEPS², 2]."""
    even = [(i + 0.5) / STEPS for i in range(STEPS)]
    areas = [side**2 * (scale[0] + (scale[1] - scale[0]) * at) for at in even]
    ratios = [ratio[0] + (ratio[1] - ratio[0]) * at for at in even]
    pairs = [(math.sqrt(area * r), math.sqrt(area / r)) for area in areas for r in ratios]
    return torch.tensor(pairs).round().long().clamp(1, side)


def block(draws: Tensor, sizes: Tensor, side: int) -> Tensor:
    """Which patches are in the block of each draws [B, M, 3] (size, top, left): bool [B, M, N]."""
    size = sizes[(draws[..., 0] * len(sizes)).long()]  # [B, M, 2]
    start = (draws[..., 1:] * (side + 1 - size)).long()
    place = torch.arange(side, device=draws.device)
    inside = (place >= start[..., None]) & (place < (start + size)[..., None])  # [B, M, 2, side]
    return (inside[..., 0, :, None] & inside[..., 1, None, :]).flatten(2)


def take(x: Tensor, places: Tensor) -> Tensor:
    """x [B, N, D] at places [B, M, T]: [B, M, T, D]."""
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return x[rows, places]
