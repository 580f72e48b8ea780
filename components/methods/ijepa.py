"""I-JEPA: predict a target encoder's features of four blocks of a photo from the patches outside of them.

Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture, CVPR 2023.
https://arxiv.org/abs/2301.08243

Block sizes differ between photos. Tensors keep one shape, because surplus tokens are masked in the attention and in the
loss. (The official code draws one block size per batch and cuts all contexts to the shortest. A photo's loss then
depends on the other photos of its batch, and the lower part of the photo is dropped first.)
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
from components.models.heads import Blocks, init_linear, sincos
from components.models.memory import EMA
from components.training.optim import AdamW, Cosine, Optimizer

STEPS = 32  # of scale and of aspect ratio; finer steps round to the same whole patches


class IJEPAConfig(MethodConfig):
    """Defaults: section 3 and appendix A; configs/in1k_vith14_ep300.yaml."""

    targets: int = Field(4, ge=1)
    target_scale: FractionRange = (0.15, 0.2)  # of the photo's area
    target_ratio: PositiveRange = (0.75, 1.5)  # height to width
    context_scale: FractionRange = (0.85, 1.0)  # square; without the targets' patches
    predictor_dim: int = Field(384, ge=4)
    predictor_depth: int = Field(12, ge=1)
    momentum: Fraction = 0.996  # to 1, linearly
    crop: FractionRange = (0.3, 1.0)  # no other augmentation, not even flip
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
        vit.pool = "mean"  # no loss trains the class token
        if vit.origin is None:  # trained weights know their own positions
            vit.fix_positions()
        sizes = block_sizes(vit.side, config.target_scale, config.target_ratio)
        context_sizes = block_sizes(vit.side, config.context_scale, (1.0, 1.0))
        self.max_target_patches = int(sizes.prod(1).max())
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
        self.to_predictor = nn.Linear(vit.dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)  # three axes: weight decay skips vectors
        self.predictor = Blocks(width, config.predictor_depth, vit.config.heads)
        self.from_predictor = nn.Linear(width, vit.dim)
        self.to_predictor.apply(init_linear)
        self.from_predictor.apply(init_linear)
        self.register_buffer("positions", sincos(vit.side, width), persistent=False)  # [N, W]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, draws = batch
        context, targets = self.blocks(draws)  # [B, N], [B, M, N]
        order = targets.byte().argsort(dim=2, descending=True, stable=True)  # the patches of each target first
        positions = order[:, :, : self.max_target_patches]  # [B, M, T]
        valid = targets.gather(2, positions)  # False where a target has fewer than T patches
        predicted = self.predict(pixels, context, positions, valid)
        error = smooth_l1_loss(predicted, self.target_features(pixels, positions), reduction="none")
        target_losses = (error.mean(-1) * valid).sum(2) / valid.sum(2)  # [B, M]
        return {"loss": target_losses.mean(), "context_ratio": context.float().mean()}

    def blocks(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Returns masks of the context [B, N] and of the targets [B, M, N], from draws [B, 3 (M + 1)].

        On the smallest grids, once in thousands of photos, the targets leave no context but the class token.
        """
        side = self.backbone.side
        context_draws, target_draws = draws.unflatten(1, (-1, 3)).split([1, self.config.targets], dim=1)
        targets = block_mask(target_draws, self.sizes, side)
        return block_mask(context_draws, self.context_sizes, side)[:, 0] & ~targets.any(1), targets

    @torch.no_grad()
    def target_features(self, pixels: Tensor, positions: Tensor) -> Tensor:
        """Returns the features of the target encoder at positions [B, M, T], layer-normalized: [B, M, T, D]."""
        x = self.target.module.tokens(pixels)  # of the whole photo [B, N, D]
        return gather_tokens(layer_norm(x, x.shape[-1:]), positions)

    def predict(self, pixels: Tensor, context: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Returns features predicted at positions [B, M, T] from the context [B, N], block by block: [B, M, T, D]."""
        attention_mask = torch.cat([torch.ones_like(context[:, :1]), context], dim=1)  # and the class token
        x = self.backbone.encode(self.backbone.embed(pixels), attention_mask)[:, 1:]  # [B, N, D]
        x = self.to_predictor(x) + self.positions
        mask_tokens = self.mask_token + self.positions[positions]  # [B, M, T, W]
        blocks = positions.shape[1]
        tokens = torch.cat([x[:, None].expand(-1, blocks, -1, -1), mask_tokens.to(x.dtype)], dim=2)  # [B, M, N + T, W]
        attention_mask = torch.cat([context[:, None].expand(-1, blocks, -1), valid], dim=2)
        predicted = self.predictor(tokens.flatten(0, 1), attention_mask.flatten(0, 1))[:, x.shape[1] :]
        return self.from_predictor(predicted).unflatten(0, (-1, blocks))

    def after_step(self) -> None:
        momentum = self.config.momentum + (1 - self.config.momentum) * self.progress
        self.target.update(self.backbone, momentum)

    def keep(self) -> Any:
        return self.target.module


def block_sizes(side: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Returns height and width in patches of blocks with evenly spaced areas and aspect ratios: int64 [STEPS², 2]."""
    steps = [(i + 0.5) / STEPS for i in range(STEPS)]
    areas = [side**2 * (scale[0] + (scale[1] - scale[0]) * step) for step in steps]
    ratios = [ratio[0] + (ratio[1] - ratio[0]) * step for step in steps]
    pairs = [(math.sqrt(area * r), math.sqrt(area / r)) for area in areas for r in ratios]
    return torch.tensor(pairs).round().long().clamp(1, side)


def block_mask(draws: Tensor, sizes: Tensor, side: int) -> Tensor:
    """Returns which of the side² patches are in each block: bool [B, M, N], from draws [B, M, 3] (size, top, left)."""
    size_draw, corner_draws = draws.split([1, 2], dim=-1)
    size = sizes[(size_draw[..., 0] * len(sizes)).long()]  # [B, M, 2]
    corner = (corner_draws * (side + 1 - size)).long()
    index = torch.arange(side, device=draws.device)
    in_block = (index >= corner[..., None]) & (index < (corner + size)[..., None])  # [B, M, 2, side]
    return (in_block[..., 0, :, None] & in_block[..., 1, None, :]).flatten(2)


def gather_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Returns the tokens of x [B, N, D] at positions [B, M, T]: [B, M, T, D]."""
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return x[rows, positions]
