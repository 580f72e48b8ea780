"""Context prediction: classify in which of eight directions one patch lies from another.

Doersch, Gupta & Efros, Unsupervised Visual Representation Learning by Context Prediction, ICCV 2015.
https://arxiv.org/abs/1505.05192

To answer, the network must recognize the object, unless it can use shortcuts: edges and textures that continue from
patch to patch, contrast, and above all the color fringes of the lens (chromatic aberration), which show how far from
the center a patch was. Gap, jitter, color dropping, resampling and contrast normalization remove these (section 3.1;
numbers as in the authors' train.py).
"""

from __future__ import annotations

from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from components.config import Fraction, FractionRange
from components.data.augment import View
from components.data.fields import Draws
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone, require_fit
from components.models.norm import BatchNorm1d
from components.models.patches import RMS, SIDE, cut, resamplers, without_aberration
from components.training.optim import SGD, Constant, Optimizer

PATCHES = SIDE * SIDE
PATCH_DRAWS = (2, 2, 2)  # of each patch: corner (top, left), resampling (whether, area), color (channel, noise)


class ContextPredictionConfig(MethodConfig):
    """Defaults: section 3 and train.py. Lengths are in pixels of a canvas that holds one grid with its jitter."""

    patch: int = Field(96, ge=2)
    gap: int = Field(48, ge=0)
    jitter: int = Field(7, ge=0)  # of each patch, at most, in each direction
    grids: int = Field(4, ge=1)  # of a photo in a batch
    crop: FractionRange = (0.35, 1.0)  # of the canvas, 398² pixels, in photos of 150,000 to 450,000
    flip: Fraction = 0.0
    gray: Fraction = 0.0  # 2/3 in recipes without color dropping (Kolesnikov et al., 2019)
    pairs: Literal["all", "center"] = "all"  # 40 ordered pairs of neighbors, or the center with each of the 8
    color: Literal["dropping", "projection", "none"] = "dropping"
    resampled: Fraction = 0.33  # of the patches, down and up again
    smallest: int = Field(10, ge=1)  # side they are reduced to; uniform in the area
    contrast: bool = True  # each patch with mean 0 and root mean square 50
    hidden: int = Field(4096, ge=1)
    averaged: bool = True  # features are those of 3 × 3 patches of a photo, averaged, as in training
    optimizer: Optimizer = SGD(lr=0.4096, momentum=0.0, schedule=Constant())  # 1e-5 for a sum of 256 · 4 · 40 pairs

    @model_validator(mode="after")
    def _resampling_reduces(self) -> Self:
        if self.resampled and self.smallest >= self.patch:
            raise ValueError(f"smallest {self.smallest} is not under patch {self.patch}; try {max(1, self.patch // 4)}")
        return self


def neighbor_pairs(pairs: Literal["all", "center"]) -> tuple[Tensor, Tensor]:
    """Returns pairs of neighboring patches [P, 2] and the direction from the first to the second [P], 0 … 7 by rows."""
    grid = [divmod(patch, SIDE) for patch in range(PATCHES)]
    table = torch.tensor(
        [
            (first, second, (row2 - row1 + 1) * SIDE + column2 - column1 + 1)  # 0 … 8, where 4 is no direction
            for first, (row1, column1) in enumerate(grid)
            for second, (row2, column2) in enumerate(grid)
            if max(abs(row2 - row1), abs(column2 - column1)) == 1 and (pairs == "all" or first == PATCHES // 2)
        ]
    )
    return table[:, :2], table[:, 2] - (table[:, 2] > 4).long()


class ContextPrediction(Method):
    needs_full_batch = "batch norm in the head uses the statistics of the whole batch"
    resampling: Tensor
    pairs: Tensor
    directions: Tensor

    @staticmethod
    def views(config: ContextPredictionConfig, image_size: int) -> list[View | Draws]:  # noqa: ARG004
        size = SIDE * config.patch + (SIDE - 1) * config.gap + 2 * config.jitter
        view = View(size, crop=config.crop, ratio=(1.0, 1.0), flip=config.flip, gray=config.gray)
        return [field for _ in range(config.grids) for field in (view, Draws(PATCHES * sum(PATCH_DRAWS)))]

    def __init__(self, backbone: Backbone, config: ContextPredictionConfig) -> None:
        super().__init__(config)
        require_fit(backbone, "patch", config.patch)
        self.backbone, width = backbone, config.hidden
        # batch norm without scale and shift: with them the network can set its activations to 0, and does (prototxt)
        norm = partial(BatchNorm1d, width, affine=False)
        self.patch_head = nn.Sequential(nn.Linear(backbone.dim, width, bias=False), norm(), nn.ReLU())
        self.pair_layer = nn.Linear(2 * width, width, bias=False)
        self.classifier = nn.Sequential(norm(), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))
        resampling = resamplers(config.patch, config.smallest) if config.resampled else torch.empty(0)
        pairs, directions = neighbor_pairs(config.pairs)
        self.register_buffer("resampling", resampling, persistent=False)  # [sides, p, p], a matrix for each side
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("directions", directions, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        patches = torch.cat([self.patches(*grid) for grid in zip(batch[::2], batch[1::2], strict=True)])
        x = self.patch_head(self.backbone.whole(patches))  # [B·9, hidden]
        # a layer on two concatenated patches is the sum of a layer on each: 18 products for each grid instead of 80
        first, second = (linear(x, half).unflatten(0, (-1, PATCHES)) for half in self.pair_layer.weight.chunk(2, 1))
        pairs = first[:, self.pairs[:, 0]] + second[:, self.pairs[:, 1]]  # [B, P, hidden]
        logits = self.classifier(pairs.flatten(0, 1))  # [B·P, 8]
        target = self.directions.repeat(len(pairs))
        return {"loss": cross_entropy(logits, target), "accuracy": (logits.argmax(1) == target).float().mean()}

    @torch.no_grad()
    def patches(self, canvas: Tensor, draws: Tensor) -> Tensor:
        """Returns the nine patches of each canvas without shortcuts: [B, 3, S, S], [B, 54] -> float [B·9, 3, p, p]."""
        config = self.config
        split_draws = draws.unflatten(1, (PATCHES, -1)).split(PATCH_DRAWS, dim=2)
        corner_draws, resample_draws, color_draws = split_draws  # [B, 9, 2] each
        cell_start = torch.arange(SIDE, device=canvas.device) * (config.patch + config.gap)
        offsets = (corner_draws * (2 * config.jitter + 1)).long()
        corners = torch.cartesian_prod(cell_start, cell_start) + offsets  # [B, 9, 2]
        patches = cut(canvas, corners, config.patch).flatten(0, 1).to(self.backbone.mean.dtype)
        with torch.autocast(canvas.device.type, enabled=False):  # half precision is too coarse for pixels
            return self.remove_shortcuts(patches, resample_draws.flatten(0, 1), color_draws.flatten(0, 1))

    def remove_shortcuts(self, patches: Tensor, resample_draws: Tensor, color_draws: Tensor) -> Tensor:
        """Resamples, drops colors and normalizes contrast: float [M, 3, p, p] in 0 … 255, draws [M, 2] each -> same."""
        config = self.config
        if config.resampled:
            apply_draw, area_draw = resample_draws.unbind(1)
            low, high = config.smallest**2, (config.patch - 1) ** 2
            side = (area_draw * (high - low) + low).sqrt().long()
            side = torch.where(apply_draw < config.resampled, side, config.patch)
            matrix = self.resampling[side - config.smallest][:, None]  # [M, 1, p, p]
            patches = matrix @ patches @ matrix.mT
        mean = self.backbone.mean
        center = patches.mean((2, 3), keepdim=True) if config.contrast else mean
        x = without_aberration(patches - center, config.color, color_draws)
        if config.contrast:
            x = x * (RMS / x.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(0.1))
        return x + mean

    def keep(self) -> Backbone:
        self.backbone.patches = self.config.patch if self.config.averaged else 0
        return self.backbone
