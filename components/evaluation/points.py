"""Measures features at one point of a run, with labels and without, on photos that are the same at every point.

The test split is never used here. Measuring changes nothing of the run: it draws no random numbers and trains nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from components.data.augment import View
from components.data.fields import make_batch
from components.data.photos import Photos
from components.evaluation import knn, label_free
from components.evaluation.features import PIXELS, center, features, pixel_features
from components.evaluation.health import ENOUGH, effective_rank
from components.evaluation.scoring import FEWEST_LABELS
from components.models.backbone import Backbone
from components.precision import uses_bf16

NEIGHBORS = 20  # that vote for a photo's class
MOST = 4096  # photos classified by the others
WATCHED = 2048  # photos whose nearest neighbors are compared
NEAR = 10  # nearest neighbors of each that are compared
PAIRS = 1024  # photos of which two crops are compared, and of which the rank is computed
CROP = (0.3, 1.0)


@dataclass(frozen=True)
class Point:
    """What features are worth. value: from 0 to 1, and `measured` says what it is: kNN accuracy or own_crop.

    effective_rank: see health.py; None for fewer photos than ENOUGH. Other measures: see label_free.py. near_start,
    near_pixels: the share of nearest neighbors that are also those at the start of the run, and those by raw pixels.
    A measure is None if a feature is not finite.
    """

    value: float
    measured: str
    effective_rank: float | None = None
    own_crop: float | None = None
    alignment: float | None = None
    uniformity: float | None = None
    near_start: float | None = None
    near_pixels: float | None = None


class Watched:
    """The photos of `splits` on which a run is measured, drawn by the seed; at most `max_labeled` of them for kNN.

    by_labels: True if features are measured by kNN accuracy, that is, if it is allowed and at least FEWEST_LABELS
    photos have labels, of two classes or more.
    rows: the photos whose features are computed. labeled_positions: positions in `rows` of the photos for kNN, in
    random order. neighbor_positions: positions in `rows` of the photos whose neighbors are compared. crop_rows: the
    photos of which two crops are compared.
    """

    def __init__(
        self,
        photos: Photos,
        seed: int,
        splits: tuple[str, ...],
        max_labeled: int | None = None,
        *,
        by_labels: bool = True,
    ) -> None:
        self.photos, self.seed = photos, seed
        labeled, names = photos.rows(*splits, labeled=True), " and ".join(splits)
        sample = _shuffle(photos.rows(*splits), seed)
        self.crop_rows, self.rows = sample[:PAIRS], np.sort(sample[:WATCHED])
        self.by_labels = by_labels and len(labeled) >= FEWEST_LABELS and len(photos.labels(labeled).unique()) > 1
        self.words = f"{len(self.crop_rows)} photos of {names}, recognized by another crop of them"
        if self.by_labels:
            labeled = _shuffle(labeled, seed)[:max_labeled]
            self.rows = np.union1d(self.rows, labeled)
            self.labeled_positions = np.searchsorted(self.rows, labeled)
            self.words = f"kNN accuracy on {len(labeled[:MOST])} photos of {names}, each classified by the others"
        self.neighbor_positions = np.searchsorted(self.rows, sample[:WATCHED])

    @cached_property
    def near_by_pixels(self) -> Tensor:
        """Nearest neighbors by raw pixels: see `neighbors`."""
        return label_free.nearest_others(pixel_features(self.photos, PIXELS, self.rows[self.neighbor_positions]), NEAR)

    def neighbors(self, vectors: Tensor) -> Tensor:
        """Returns the nearest neighbors among at most WATCHED photos, by the features of `rows`: [≤ WATCHED, NEAR]."""
        return label_free.nearest_others(vectors[self.neighbor_positions], NEAR)

    def accuracy(self, vectors: Tensor) -> float:
        """Returns the kNN accuracy of the features of `rows`."""
        (bank,) = center(vectors[self.labeled_positions])
        labels, queries = self.photos.labels(self.rows[self.labeled_positions]), torch.arange(len(bank))[:MOST]
        predicted = knn.classify_leave_one_out(queries, bank, labels, min(NEIGHBORS, len(bank) - 1))
        return float((predicted == labels[queries]).float().mean())


def measure(backbone: Backbone, watched: Watched, start: Tensor | None = None) -> tuple[Point, Tensor]:
    """Returns the measures of the features, and the nearest neighbors by them.

    start: the neighbors at the start of the run; None: this is the start.
    """
    vectors = features(backbone, watched.photos, "snapshot", watched.rows)
    neighbors = watched.neighbors(vectors)
    sample = vectors[watched.neighbor_positions[:PAIRS]]
    rank = effective_rank(sample)  # if all vectors are equal, centering leaves only rounding errors
    first, second = _crops(backbone, watched.photos, watched.crop_rows, watched.seed)
    own_crop = label_free.own_crop_share(first, second)
    finite = bool(vectors.isfinite().all() and first.isfinite().all() and second.isfinite().all())
    point = Point(
        watched.accuracy(vectors) if watched.by_labels else own_crop,
        watched.words,
        rank if len(sample) >= ENOUGH and math.isfinite(rank) else None,
        own_crop,
        label_free.alignment(first, second) if finite else None,
        label_free.uniformity(first) if finite else None,
        label_free.shared_neighbors(neighbors, neighbors if start is None else start),
        label_free.shared_neighbors(neighbors, watched.near_by_pixels),
    )
    return point, neighbors


@torch.no_grad()
def _crops(backbone: Backbone, photos: Photos, rows: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the features of two random crops of each photo: float32 [len(rows), D] each."""
    device = next(backbone.parameters()).device
    view = View(backbone.config.image_size, crop=CROP)
    parts = []
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16()):
        for batch_rows in np.array_split(rows, max(1, len(rows) // 128)):
            pixels = make_batch(photos, batch_rows, (view, view), seed, 0, device)
            parts.append([backbone(crop).float().cpu() for crop in pixels])
    first, second = (torch.cat(crops) for crops in zip(*parts, strict=True))
    return first, second


def _shuffle(rows: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(rows)
