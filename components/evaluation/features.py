"""Features of a frozen backbone: one vector per whole photo, without augmentation, computed once.

Runs on a GPU if there is one, and in bf16 where the chip has bf16 matrix products, as training does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from components.data.photos import Photos
from components.evaluation.scale import deviation, unit_vectors
from components.models.backbone import Backbone
from components.precision import uses_bf16, with_bf16_weights
from components.progress import progress

PIXELS = 16  # raw pixels of full size were no better neighbors (within 0.02 on six data sets), and cost a minute


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switches a module to eval mode, and every part of it back to its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.no_grad()
def features(backbone: Backbone, photos: Photos, name: str = "features", rows: np.ndarray | None = None) -> Tensor:
    """Returns the features of the photos in `rows`, or of all: float32 [rows, D], on the CPU. name: of the progress."""
    return _for_photos(lambda model, batch: [model(batch)], backbone, photos, name, rows)[0]


@torch.no_grad()
def block_features(backbone: Backbone, photos: Photos) -> list[Tensor]:
    """Returns the features after each block (ViT) or stage (ResNet), from one pass; the last are `features`."""
    return _for_photos(lambda model, batch: model.blocks(batch), backbone, photos, "features")


@torch.no_grad()
def place_features(backbone: Backbone, photos: Photos, rows: np.ndarray) -> Tensor:
    """Returns the features of the places of photos, by patch or by cell of a CNN's last map: float32 [rows, h, w, D].

    A backbone that learned from patches of a photo sees one after the other, without overlap.
    """
    return _for_photos(lambda model, batch: [_places(model, batch)], backbone, photos, "places", rows)[0]


def _places(backbone: Backbone, pixels: Tensor) -> Tensor:
    """[B, 3, S, S] -> [B, h, w, D]."""
    tiles = max(1, round(pixels.shape[-1] / backbone.patches)) if backbone.patches else 1
    if backbone.patches:
        pixels = nn.functional.interpolate(
            pixels.float(), (tiles * backbone.patches,) * 2, mode="bilinear", antialias=True
        )
    cells = pixels.unflatten(3, (tiles, -1)).unflatten(2, (tiles, -1)).permute(0, 2, 4, 1, 3, 5)  # [B, t, t, 3, s, s]
    tokens = backbone.tokens(cells.flatten(0, 2))
    side = math.isqrt(tokens.shape[1])
    grid = tokens.view(len(pixels), tiles, tiles, side, side, -1).transpose(2, 3)
    return grid.reshape(len(pixels), tiles * side, tiles * side, -1)


def _for_photos(
    compute: Callable[[Backbone, Tensor], list[Tensor]],
    backbone: Backbone,
    photos: Photos,
    name: str,
    rows: np.ndarray | None = None,
) -> list[Tensor]:
    """Returns the outputs of `compute`, each concatenated over all batches: float32 [rows, D], on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.to(device).eval()
    model = with_bf16_weights(backbone) if uses_bf16() else backbone
    rows = _all_rows(photos) if rows is None else rows
    batches = progress(photos.batches(rows, backbone.config.image_size, backbone.config.square), name, unit="batch")
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16()):
        outputs = [[output.float().cpu() for output in compute(model, batch.to(device))] for batch in batches]
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def pixel_features(photos: Photos, size: int, rows: np.ndarray | None = None) -> Tensor:
    """Returns `size` × `size` pixels of each photo as one vector, without any network: float32 [rows, 3·size²]."""
    rows = _all_rows(photos) if rows is None else rows
    return torch.cat([batch.float().flatten(1) / 255 for batch in photos.batches(rows, size)])


def standardize(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Returns all tensors shifted and scaled so that `train` has mean 0 and deviation 1 in each dimension."""
    mean, std = train.mean(0), deviation(train)
    return [(x - mean) / std for x in (train, *others)]


def center(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Returns all tensors minus the mean of `train`, as unit vectors."""
    mean = train.mean(0)
    return [unit_vectors(x - mean) for x in (train, *others)]


def _all_rows(photos: Photos) -> np.ndarray:
    return np.arange(len(photos))
