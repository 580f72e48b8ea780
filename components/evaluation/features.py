"""A backbone is judged frozen: one vector a whole picture, no augmentation, computed once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from components.data.photos import Photos
from components.models.backbone import Backbone
from components.progress import progress


@torch.no_grad()
def features(backbone: Backbone, photos: Photos, name: str = "features") -> Tensor:
    """Of every picture: float32 [len(photos), D], on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.to(device).eval()
    batches = progress(photos.batches(_all(photos), backbone.config.image_size), name, unit="batch")
    return torch.cat([backbone(batch.to(device)).float().cpu() for batch in batches])


@torch.no_grad()
def block_features(backbone: Backbone, photos: Photos) -> list[Tensor]:
    """Of every picture after every block (ViT) or stage (ResNet), in one pass; the last ones are its features."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.to(device).eval()
    batches = progress(photos.batches(_all(photos), backbone.config.image_size), "features", unit="batch")
    found = [[block.float().cpu() for block in backbone.blocks(batch.to(device))] for batch in batches]
    return [torch.cat(block) for block in zip(*found, strict=True)]


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
