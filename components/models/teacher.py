"""A published backbone as a teacher: frozen, and no part of the network that it teaches."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from components.models import published
from components.models.backbone import Backbone, PublishedBackbone, build
from components.models.origin import Origin


def _with_checkpoint(values: Any) -> Any:
    return {"kind": "published", **published.resolve(values)} if isinstance(values, dict) else values


# the settings from, revision and image_size; the others are the checkpoint's
TeacherConfig = Annotated[PublishedBackbone, BeforeValidator(_with_checkpoint)]


class Teacher(nn.Module):
    """Returns the features of images [B, D] and of their patches [B, N, D], as the backbone was published.

    It is always in eval mode and gets no gradient. The module that holds it does not see its weights, so they are in no
    checkpoint and no optimizer, but `.to(…)` moves them along.
    """

    def __init__(self, config: PublishedBackbone) -> None:
        super().__init__()
        backbone = build(config).eval().requires_grad_(False)  # noqa: FBT003
        self._unregistered = (backbone,)
        origin = backbone.origin or Origin(config.source, type(backbone).__name__)
        self.origin = replace(origin, source=config.source)

    @property
    def backbone(self) -> Backbone:
        return self._unregistered[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # noqa: FBT001, FBT002
        self.backbone._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.backbone.whole_and_tokens(pixels)


@torch.no_grad()
def token_grid(backbone: Backbone) -> tuple[int, int]:
    """Returns how many tokens a row of an image has, and the width of a token.

    Raises ValueError if the tokens are no square.
    """
    side, training = backbone.config.image_size, backbone.training
    tokens = backbone.eval().tokens(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    backbone.train(training)
    if isqrt(tokens.shape[1]) ** 2 != tokens.shape[1]:
        raise ValueError(f"the {tokens.shape[1]} tokens of an image are no square; try patch_weight: 0")
    return isqrt(tokens.shape[1]), tokens.shape[2]


def grid_matrix(old: int, new: int) -> Tensor:
    """Returns the matrix that resamples a grid of old² tokens to new², bilinear with antialiasing: [new², old²].

    As one matrix product, its gradient is summed in a fixed order on a GPU too.
    """
    grids = torch.eye(old**2).view(old**2, 1, old, old)
    return interpolate(grids, (new, new), mode="bilinear", antialias=True).flatten(1).T.contiguous()
