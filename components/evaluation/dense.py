"""Dense evaluation of a frozen backbone: which places show an object of which kind, by neighbors and by a probe.

Kinds of places by their nearest neighbors: Balažević et al., Towards In-Context Scene Understanding, NeurIPS 2023,
https://arxiv.org/abs/2306.01667. By a linear probe: Oquab et al., DINOv2, section 7.4, https://arxiv.org/abs/2304.07193.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, one_hot

from components.data.photos import Photos
from components.data.truth import Truth
from components.evaluation import knn, linear
from components.evaluation.features import center, standardize
from components.evaluation.kept import mean_share_with_ci

SPLITS = {"train": 600, "test": 400}  # photos at most, and
BANK = 20_000  # places of training photos, so that it takes seconds
PIXELS, GRID = 64, 8  # raw pixels: squares of a photo of this side, in a grid of this side


def dense_rows(photos: Photos) -> list[np.ndarray]:
    """Returns the rows of train and test that are measured, always the same."""
    random = np.random.default_rng(0)
    return [np.sort(random.permutation(photos.rows(split))[:limit]) for split, limit in SPLITS.items()]


def classes_of(rows: np.ndarray, truths: Sequence[Truth]) -> Tensor:
    """Returns the class of each pixel, int64 [n, H, W]: 0 the ground, from 1 the kinds by their names."""
    kinds = sorted({truth.kind for truth in truths})
    masks = torch.from_numpy(np.stack([truths[row].mask for row in rows])) > 0
    return masks * torch.tensor([1 + kinds.index(truths[row].kind) for row in rows])[:, None, None]


def pixel_places(photos: Photos, rows: np.ndarray) -> Tensor:
    """Returns the raw pixels of the squares of a grid, without any network: float32 [n, 8, 8, 192]."""
    squares = photos.squares(rows, PIXELS).float() / 255
    step = PIXELS // GRID
    cells = squares.unflatten(3, (GRID, step)).unflatten(2, (GRID, step))  # [n, 3, 8, 8, 8, 8]
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3)


def segmentation(
    parts: Sequence[Tensor], rows: Sequence[np.ndarray], truths: Sequence[Truth], neighbors: int
) -> dict[str, Any]:
    """Returns the mean IoU on test of the classes that neighbors (knn) and a linear probe give to places.

    best: the mean IoU of the true classes of the places, about the upper limit on this grid. A place's class is the
    kind of the objects that cover at least half of it. Scores of places are enlarged to the mask's size, then the
    highest one wins. parts: features of places [n, h, w, D] of the `rows` of train and test; truths: of all photos.
    """
    train_classes, test_classes = (classes_of(r, truths) for r in rows)
    count, (height, width) = int(max(train_classes.max(), test_classes.max())) + 1, parts[0].shape[1:3]
    place_classes = [majority(classes, height, width).flatten() for classes in (train_classes, test_classes)]
    sample = torch.randperm(len(place_classes[0]), generator=torch.Generator().manual_seed(0))[:BANK]
    bank, labels, queries = parts[0].flatten(0, 2)[sample], place_classes[0][sample], parts[1].flatten(0, 2)
    centered, centered_queries = center(bank, queries)
    similarity, nearest = knn.nearest(centered_queries, centered, min(neighbors, len(bank)))
    train, test = standardize(bank, queries)
    weight, bias = linear.fit(train, labels, count, linear.MIDDLE)
    scores = {
        "knn": knn.shares(similarity, labels[nearest], count),
        "linear": test @ weight.T + bias,
        "best": one_hot(place_classes[1], count).float(),
    }
    grids = {name: x.view(-1, height, width, count).permute(0, 3, 1, 2) for name, x in scores.items()}
    ious = {name: mean_iou(enlarged(x, test_classes.shape[1:]).argmax(1), test_classes) for name, x in grids.items()}
    return {**ious, "places": [height, width]}


def majority(classes: Tensor, height: int, width: int) -> Tensor:
    """Returns the class of each place, int64 [n, height, width]; classes: of pixels, one kind at most in a photo."""
    is_object = adaptive_avg_pool2d((classes > 0).float()[:, None], (height, width))[:, 0] >= 0.5
    return is_object * classes.amax((1, 2), keepdim=True)


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Returns maps of places [n, C, h, w] at the size of masks, bilinear: [n, C, H, W]."""
    return interpolate(maps, tuple(size), mode="bilinear")


def mean_iou(predicted: Tensor, expected: Tensor) -> dict[str, float]:
    """Returns the mean, over the classes that occur, of intersection / union in all photos, with its 95 % interval.

    predicted, expected: int64 [n, H, W].
    """
    count, photos = int(max(predicted.max(), expected.max())) + 1, len(predicted)
    pairs = (torch.arange(photos)[:, None, None] * count + expected) * count + predicted
    pairs = torch.bincount(pairs.flatten(), minlength=photos * count**2).view(photos, count, count).double()
    intersection = pairs.diagonal(dim1=1, dim2=2)  # [n, C]
    union = pairs.sum(1) + pairs.sum(2) - intersection
    return mean_share_with_ci(intersection, union)
