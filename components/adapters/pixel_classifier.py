"""A backbone and the classifier of its outputs as one module: pixels in, logits out."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from components.adapters.heads import Reads
from components.data.photos import Photos
from components.evaluation.features import features
from components.models.backbone import AnyBackbone, Backbone


class PixelClassifier(nn.Module):
    """uint8 (or float in 0 … 255) [B, 3, S, S] -> logits [B, C]; S is the backbone's image_size.

    backbone: as `as_stock` leaves it, so that its feature is the one that stock classes classify; head: what
    `Head.deployed` returns; reads: whether that takes features or tokens.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, reads: Reads) -> None:
        super().__init__()
        self.backbone, self.head, self.reads = backbone, head, reads

    @property
    def config(self) -> AnyBackbone:
        return self.backbone.config

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.backbone.tokens(pixels) if self.reads == "tokens" else self.backbone.whole(pixels))


@torch.no_grad()
def photo_logits(model: PixelClassifier, photos: Photos, rows: np.ndarray, name: str = "logits") -> Tensor:
    """Returns the logits of the photos in `rows`, without augmentation: float32 [rows, C], on the CPU."""
    return features(cast(Any, model), photos, name, rows)
