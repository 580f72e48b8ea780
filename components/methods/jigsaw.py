"""Jigsaw: classify in which order the nine tiles of a photo are.

Noroozi & Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016.
https://arxiv.org/abs/1603.09246

The classes are a subset of the 362,880 permutations with large Hamming distances, so that no pair of tiles is enough
to tell them apart (section 3.2 and algorithm 1). Each tile is cut at a random position within its cell, so that edges
do not continue, and is normalized by itself, so that brightness does not show which tiles are neighbors (section 3.3).
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
    tile: int = Field(64, ge=1)  # cut at a random position within its cell
    crop: FractionRange = (0.75, 1.0)  # a square of 255 of the 256 pixels of the shorter side, of a photo of 4 : 3
    flip: Fraction = 0.5
    gray: Fraction = 0.66
    normalized: bool = True  # each tile's channels with mean 0 and deviation 1 (Noroozi & Favaro, section 3.3)
    orders: int = Field(2000, ge=2, le=math.factorial(TILES))
    hidden: int = Field(1000, ge=1)
    averaged: bool = True  # features are those of 3 × 3 tiles of a photo, averaged, as in training
    optimizer: Optimizer = SGD(
        lr=0.1,
        weight_decay=1e-4,
        decay_all=True,
        schedule=Steps(milestones=(30 / 105, 60 / 105, 90 / 105, 100 / 105), warmup=5 / 105),
    )


@cache
def distant_permutations(length: int, count: int) -> np.ndarray:
    """Returns `count` permutations of `length` tiles, selected greedily by Hamming distance: int8 [count, length].

    The first is the identity. Each next one has the largest minimum distance to those before it, then the largest mean
    distance, then comes first in lexicographic order. Algorithm 1 uses the mean distance alone, and has permutations
    that differ in only two tiles among the first 1,000; the mean distance here is the same to three digits.
    """
    candidates = np.array(list(permutations(range(length))), dtype=np.int8)  # [length!, length]
    with_tile_at = [[np.flatnonzero(candidates[:, i] == tile) for tile in range(length)] for i in range(length)]
    total_equal, max_equal = np.zeros(len(candidates), np.int64), np.zeros(len(candidates), np.int64)
    selected = [0]
    while len(selected) < count:
        equal = np.zeros(len(candidates), np.int64)  # positions with the same tile: length less the Hamming distance
        for i, tile in enumerate(candidates[selected[-1]]):
            equal[with_tile_at[i][tile]] += 1
        total_equal += equal
        np.maximum(max_equal, equal, out=max_equal)  # a selected one equals itself everywhere, so is not selected again
        selected.append(int((max_equal * length * count + total_equal).argmin()))
    return candidates[selected]


class Jigsaw(Method):
    needs_full_batch = "batch norm in the head uses the statistics of the whole batch"
    orders: Tensor

    @staticmethod
    def views(config: JigsawConfig, image_size: int) -> tuple[View, Draws]:  # noqa: ARG004
        view = View(SIDE * config.cell, crop=config.crop, ratio=(1.0, 1.0), flip=config.flip, gray=config.gray)
        return view, Draws(2 * TILES + 1)  # top and left of each tile, and the permutation

    def __init__(self, backbone: Backbone, config: JigsawConfig) -> None:
        super().__init__(config)
        require_fit(backbone, "tile", config.tile)
        if config.tile > config.cell:
            raise ValueError(
                f"tile {config.tile} is larger than its cell {config.cell}; try cell {config.tile * 4 // 3}"
            )
        self.backbone, width = backbone, config.hidden
        self.tile_head = nn.Sequential(nn.Linear(backbone.dim, width, bias=False), BatchNorm1d(width), nn.ReLU())
        self.classifier = nn.Linear(TILES * width, config.orders)
        self.register_buffer(
            "orders", torch.from_numpy(distant_permutations(TILES, config.orders)).long(), persistent=False
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        canvas, draws = batch
        corner_draws, order_draw = draws.split([2 * TILES, 1], dim=1)
        target = (order_draw[:, 0] * len(self.orders)).long()  # [B]
        features = self.tile_head(self.backbone.whole(self.tiles(canvas, corner_draws))).unflatten(0, (-1, TILES))
        permuted = features.gather(
            1, self.orders[target][:, :, None].expand_as(features)
        )  # at position i: tile order[i]
        logits = self.classifier(permuted.flatten(1))  # [B, orders]
        return {"loss": cross_entropy(logits, target), "accuracy": (logits.argmax(1) == target).float().mean()}

    @torch.no_grad()
    def tiles(self, canvas: Tensor, corner_draws: Tensor) -> Tensor:
        """Returns the tiles row by row, normalized: [B, 3, S, S] and draws [B, 18] -> float [B·9, 3, t, t]."""
        config, mean, std = self.config, self.backbone.mean, self.backbone.std
        cell_start = torch.arange(SIDE, device=canvas.device) * config.cell
        offsets = (corner_draws.unflatten(1, (TILES, 2)) * (config.cell - config.tile + 1)).long()
        corners = torch.cartesian_prod(cell_start, cell_start) + offsets  # [B, 9, 2]
        tiles = cut(canvas, corners, config.tile).flatten(0, 1).to(mean.dtype)
        return standardized(tiles) * std + mean if config.normalized else tiles  # backbone.normalize reverses std, mean

    def keep(self) -> Backbone:
        self.backbone.patches = self.config.tile if self.config.averaged else 0
        return self.backbone
