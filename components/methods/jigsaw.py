"""Jigsaw: nine tiles of a picture in another order; which one is it? Who knows how parts make a whole can tell.

Noroozi & Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016.
https://arxiv.org/abs/1603.09246

Of the 362,880 orders only some are asked for, as unlike each other as can be, so that no pair of tiles decides alone
(section 3.2 and algorithm 1). Each tile is cut at a place of its own within its cell, so that edges do not go on, and
normalized on its own, so that its brightness says nothing about its neighbors (section 3.3).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components.config import Fraction, FractionRange
from components.data.augment import View
from components.data.fields import Draws
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone, require_fit
from components.models.norm import BatchNorm1d
from components.models.patches import SIDE, cut, standardized
from components.training.optim import SGD, Optimizer, Steps

TILES = SIDE * SIDE


class JigsawConfig(MethodConfig):
    """Defaults: the ResNet-50 run of Goyal et al., 2019 (https://arxiv.org/abs/1905.01235), as VISSL states it."""

    cell: int = Field(85, ge=1)  # the canvas is 3 × 3 cells
    tile: int = Field(64, ge=1)  # cut at a random place within its cell
    crop: FractionRange = (0.75, 1.0)  # 255 of 256 pixels of the shorter side: that much of a picture of 4 : 3
    flip: Fraction = 0.5
    gray: Fraction = 0.66
    normalized: bool = True  # each tile's channels with mean 0 and deviation 1 (Noroozi & Favaro, section 3.3)
    orders: int = Field(2000, ge=2, le=math.factorial(TILES))
    hidden: int = Field(1000, ge=1)
    averaged: bool = True  # the backbone is judged as it was trained: by 3 × 3 tiles of a picture, averaged
    optimizer: Optimizer = SGD(
        lr=0.1,
        weight_decay=1e-4,
        decay_all=True,
        schedule=Steps(milestones=(30 / 105, 60 / 105, 90 / 105, 100 / 105), warmup=5 / 105),
    )


@cache
def unlike(places: int, count: int) -> np.ndarray:
    """`count` orders of `places` tiles, [count, places], each as far as can be from those before it.

    Far is the least Hamming distance, then the mean one, then the first in the alphabet; the first is the identity.
    Algorithm 1 looks at the mean alone, and has orders that differ in two tiles among the first 1,000; the mean is the
    same here to three digits. A tile that two orders have at one place brings them nearer by one.
    """
    every = np.array(list(permutations(range(places))), dtype=np.int8)  # [places!, places]
    at = [[np.flatnonzero(every[:, place] == tile) for tile in range(places)] for place in range(places)]
    common, closest = np.zeros(len(every), np.int64), np.zeros(len(every), np.int64)
    chosen = [0]
    while len(chosen) < count:
        shared = np.zeros(len(every), np.int64)
        for place, tile in enumerate(every[chosen[-1]]):
            shared[at[place][tile]] += 1
        common += shared
        np.maximum(closest, shared, out=closest)  # one that is chosen shares all with itself
        chosen.append(int((closest * places * count + common).argmin()))
    return every[chosen]


class Jigsaw(Method):
    needs_full_batch = "batch norm in the head reads the whole batch"
    orders: Tensor

    @staticmethod
    def views(config: JigsawConfig, image_size: int) -> tuple[View, Draws]:  # noqa: ARG004
        view = View(SIDE * config.cell, crop=config.crop, ratio=(1.0, 1.0), flip=config.flip, gray=config.gray)
        return view, Draws(2 * TILES + 1)

    def __init__(self, backbone: Backbone, config: JigsawConfig) -> None:
        super().__init__(config)
        require_fit(backbone, "tile", config.tile)
        if config.tile > config.cell:
            raise ValueError(
                f"tile {config.tile} is larger than its cell {config.cell}; try cell {config.tile * 4 // 3}"
            )
        self.backbone, wide = backbone, config.hidden
        self.each = nn.Sequential(nn.Linear(backbone.dim, wide, bias=False), BatchNorm1d(wide), nn.ReLU())
        self.head = nn.Linear(TILES * wide, config.orders)
        self.register_buffer("orders", torch.from_numpy(unlike(TILES, config.orders)).long(), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        canvas, draws = batch
        target = (draws[:, -1] * len(self.orders)).long()  # [B]
        seen = self.each(self.backbone.whole(self.tiles(canvas, draws[:, :-1]))).unflatten(0, (-1, TILES))
        mixed = seen.gather(1, self.orders[target][:, :, None].expand_as(seen))  # the tile at place i is order[i]
        logits = self.head(mixed.flatten(1))  # [B, orders]
        return {"loss": cross_entropy(logits, target), "accuracy": (logits.argmax(1) == target).float().mean()}

    @torch.no_grad()
    def tiles(self, canvas: Tensor, draws: Tensor) -> Tensor:
        """Row by row, as the network sees them: [B, 3, S, S] and [B, 18] -> float [B·9, 3, t, t]."""
        config, mean, std = self.config, self.backbone.mean, self.backbone.std
        step = torch.arange(SIDE, device=canvas.device) * config.cell
        free = config.cell - config.tile + 1
        corners = torch.cartesian_prod(step, step) + (draws.unflatten(1, (TILES, 2)) * free).long()  # [B, 9, 2]
        squares = cut(canvas, corners, config.tile).flatten(0, 1).to(mean.dtype)
        return standardized(squares) * std + mean if config.normalized else squares  # normalize() takes them off again

    def keep(self) -> Backbone:
        self.backbone.patches = self.config.tile if self.config.averaged else 0
        return self.backbone
