"""Context prediction: where does this patch lie, as seen from that one? Who knows objects can tell.

Doersch, Gupta & Efros, Unsupervised Visual Representation Learning by Context Prediction, ICCV 2015.
https://arxiv.org/abs/1505.05192

A network looks for cheaper ways: edges and textures that go on from patch to patch, contrast, and above all the color
fringes of the lens, which tell how far from the middle a patch was. Gap, jitter, color dropping, resampling and
contrast normalization are there to take these away (section 3.1; numbers as in the authors' train.py).
"""

from __future__ import annotations

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

PATCHES, EACH = SIDE * SIDE, 6  # draws of a patch: top, left, resampled, how far, channel, noise


class ContextPredictionConfig(MethodConfig):
    """Defaults: section 3 and train.py. Lengths are in pixels of a canvas that holds one grid with its jitter."""

    patch: int = Field(96, ge=2)
    gap: int = Field(48, ge=0)
    jitter: int = Field(7, ge=0)  # at most, up or down, left or right
    grids: int = Field(4, ge=1)  # of a picture in a batch
    crop: FractionRange = (0.35, 1.0)  # of the canvas, 398² pixels, in pictures of 150,000 to 450,000
    flip: Fraction = 0.0
    gray: Fraction = 0.0  # 2/3 in the recipes that drop no color (Kolesnikov et al., 2019)
    pairs: Literal["all", "center"] = "all"  # 40 of neighbors in both orders, or the middle one with each of the 8
    color: Literal["dropping", "projection", "none"] = "dropping"
    resampled: Fraction = 0.33  # share of patches taken down and up again
    smallest: int = Field(10, ge=1)  # side they are taken down to, uniform in the area
    contrast: bool = True  # each patch with mean 0 and root mean square 50
    hidden: int = Field(4096, ge=1)
    averaged: bool = True  # the backbone is judged as it was trained: by 3 × 3 patches of a picture, averaged
    optimizer: Optimizer = SGD(lr=0.4096, momentum=0.0, schedule=Constant())  # 1e-5 for a sum of 256 · 4 · 40 pairs

    @model_validator(mode="after")
    def _smaller(self) -> Self:
        if self.resampled and self.smallest >= self.patch:
            raise ValueError(f"smallest {self.smallest} is not under patch {self.patch}; try {max(1, self.patch // 4)}")
        return self


def neighbors(pairs: Literal["all", "center"]) -> tuple[Tensor, Tensor]:
    """Places in the grid [P, 2], and where the second lies as seen from the first: 0 … 7, row by row around it [P]."""
    spots = [divmod(place, SIDE) for place in range(PATCHES)]
    found = [
        (a, b, (y - v + 1) * SIDE + x - u + 1)  # 0 … 8 with 4 the first itself
        for a, (v, u) in enumerate(spots)
        for b, (y, x) in enumerate(spots)
        if a != b and max(abs(y - v), abs(x - u)) == 1 and (pairs == "all" or a == PATCHES // 2)
    ]
    table = torch.tensor(found)
    return table[:, :2], table[:, 2] - (table[:, 2] > 4).long()


class ContextPrediction(Method):
    needs_full_batch = "batch norm in the head reads the whole batch"
    bank: Tensor
    places: Tensor
    target: Tensor

    @staticmethod
    def views(config: ContextPredictionConfig, image_size: int) -> list[View | Draws]:  # noqa: ARG004
        size = SIDE * config.patch + (SIDE - 1) * config.gap + 2 * config.jitter
        view = View(size, crop=config.crop, ratio=(1.0, 1.0), flip=config.flip, gray=config.gray)
        return [entry for _ in range(config.grids) for entry in (view, Draws(PATCHES * EACH))]

    def __init__(self, backbone: Backbone, config: ContextPredictionConfig) -> None:
        super().__init__(config)
        require_fit(backbone, "patch", config.patch)
        self.backbone, wide = backbone, config.hidden
        self.each = nn.Sequential(nn.Linear(backbone.dim, wide, bias=False), BatchNorm1d(wide, affine=False), nn.ReLU())
        self.both = nn.Linear(2 * wide, wide, bias=False)
        # no scale and shift: with them the network can silence its activations, and does (train.py's prototxt)
        self.told = nn.Sequential(
            BatchNorm1d(wide, affine=False), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 8)
        )
        bank = resamplers(config.patch, config.smallest) if config.resampled else torch.empty(0)
        for name, value in zip(("bank", "places", "target"), (bank, *neighbors(config.pairs)), strict=True):
            self.register_buffer(name, value, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        patches = torch.cat([self.patches(*grid) for grid in zip(batch[::2], batch[1::2], strict=True)])
        x = self.each(self.backbone.whole(patches))  # [B·9, hidden]
        # one layer on both patches is the sum of one layer on each: 18 products a grid, not 80
        one, other = (linear(x, half).unflatten(0, (-1, PATCHES)) for half in self.both.weight.chunk(2, 1))
        pairs = one[:, self.places[:, 0]] + other[:, self.places[:, 1]]  # [B, P, hidden]
        logits = self.told(pairs.flatten(0, 1))  # [B·P, 8]
        target = self.target.repeat(len(pairs))
        return {"loss": cross_entropy(logits, target), "accuracy": (logits.argmax(1) == target).float().mean()}

    @torch.no_grad()
    def patches(self, canvas: Tensor, draws: Tensor) -> Tensor:
        """The nine patches of each canvas, as the network sees them: [B, 3, S, S], [B, 54] -> float [B·9, 3, p, p]."""
        config = self.config
        draws = draws.unflatten(1, (PATCHES, EACH))  # [B, 9, 6]
        step = torch.arange(SIDE, device=canvas.device) * (config.patch + config.gap)
        corners = torch.cartesian_prod(step, step) + (draws[:, :, :2] * (2 * config.jitter + 1)).long()  # [B, 9, 2]
        squares = cut(canvas, corners, config.patch).flatten(0, 1).to(self.backbone.mean.dtype)
        with torch.autocast(canvas.device.type, enabled=False):  # half precision is too coarse for pixels
            return self.disguised(squares, draws.flatten(0, 1)[:, 2:])

    def disguised(self, squares: Tensor, draws: Tensor) -> Tensor:
        """Without the cheap cues: float [M, 3, p, p] in 0 … 255, draws [M, 4] -> about the same range."""
        config = self.config
        if config.resampled:
            low, high = config.smallest**2, (config.patch - 1) ** 2
            side = (draws[:, 1] * (high - low) + low).sqrt().long()
            side = torch.where(draws[:, 0] < config.resampled, side, config.patch)
            matrix = self.bank[side - config.smallest][:, None]  # [M, 1, p, p]
            squares = matrix @ squares @ matrix.mT
        middle = self.backbone.mean
        zero = squares.mean((2, 3), keepdim=True) if config.contrast else middle
        x = without_aberration(squares - zero, config.color, draws[:, 2:])
        if config.contrast:
            x = x * (RMS / x.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(0.1))
        return x + middle

    def keep(self) -> Backbone:
        self.backbone.patches = self.config.patch if self.config.averaged else 0
        return self.backbone
