"""A backbone is judged frozen: one vector a whole picture, no augmentation, computed once.

On a GPU if there is one, and in bf16 where the chip multiplies in it, as in training.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from components.data.photos import Photos
from components.machine import has_bf16
from components.models.backbone import Backbone
from components.progress import progress


@torch.no_grad()
def features(backbone: Backbone, photos: Photos, name: str = "features") -> Tensor:
    """Of every picture: float32 [len(photos), D], on the CPU."""
    return _of_every_picture(backbone, lambda batch: [backbone(batch)], photos, name)[0]


@torch.no_grad()
def block_features(backbone: Backbone, photos: Photos) -> list[Tensor]:
    """Of every picture after every block (ViT) or stage (ResNet), in one pass; the last ones are its features."""
    return _of_every_picture(backbone, backbone.blocks, photos, "features")


def _of_every_picture(
    backbone: Backbone, told: Callable[[Tensor], list[Tensor]], photos: Photos, name: str
) -> list[Tensor]:
    """Each of the things that are told of a batch, of all batches: float32 [len(photos), D], on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.to(device).eval()
    batches = progress(photos.batches(_all(photos), backbone.config.image_size), name, unit="batch")
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16()):
        found = [[one.float().cpu() for one in told(batch.to(device))] for batch in batches]
    return [torch.cat(of_one) for of_one in zip(*found, strict=True)]


def pixel_features(photos: Photos, size: int) -> Tensor:
    """What can be told without any network: `size` × `size` pixels as one vector. Float32 [len(photos), 3·size²]."""
    return torch.cat([batch.float().flatten(1) / 255 for batch in photos.batches(_all(photos), size)])


def standardize(bank: Tensor, *others: Tensor) -> list[Tensor]:
    """All with the mean 0 and the deviation 1 that `bank` has in each dimension."""
    mean, std = bank.mean(0), bank.std(0).clamp_min(1e-6)
    return [(x - mean) / std for x in (bank, *others)]


def center(bank: Tensor, *others: Tensor) -> list[Tensor]:
    """All as unit vectors around the mean of `bank`."""
    mean = bank.mean(0)
    return [nn.functional.normalize(x - mean, dim=1) for x in (bank, *others)]


def _all(photos: Photos) -> np.ndarray:
    return np.arange(len(photos))
