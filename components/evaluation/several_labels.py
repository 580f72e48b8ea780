"""Several labels a photo: the loss of independent yes-or-no questions, and the mean average precision."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from components.data.photos import Photos


def label_matrix(photos: Photos, rows: np.ndarray) -> Tensor:
    """Returns which classes the photos show: bool [len(rows), C]. A photo without a label shows none."""
    labels = photos.labels(rows)
    return labels[:, None] == torch.arange(len(photos.classes))


def labels_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean over photos and classes of the binary cross-entropy.

    logits: [B, C]; labels: bool [B, C], True where a photo shows the class; weights: of the classes, [C].
    """
    losses = binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return losses.mean() if weights is None else (losses * weights).mean()


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns the average precision of each class, float64 [C]; NaN for a class that no photo shows.

    The mean, over the photos that show the class, of the precision among all photos that score at least as high: the
    area under the steps of precision and recall. Photos with equal scores count together, so that their order does not
    matter. scores: [N, C], higher where the class is more likely; labels: bool [N, C].
    """
    precisions = []
    for column, shown in zip(scores.T, labels.T, strict=True):
        order = column.argsort(descending=True)
        values, counts = column[order].unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)  # photos that score at least as high as each value
        right = shown[order].double().cumsum(0)[ends - 1]  # of these, those that show the class
        new = right.diff(prepend=right.new_zeros(1))
        precisions.append((right / ends * new).sum() / right[-1] if len(values) else right.new_tensor(torch.nan))
    return torch.stack(precisions)


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Returns the mean of `average_precision` over the classes that at least one photo shows.

    Raises ValueError if no photo shows any class.
    """
    precisions = average_precision(scores, labels)
    measured = precisions[~precisions.isnan()]
    if not len(measured):
        raise ValueError("no photo has a label; at least one is needed to measure the average precision")
    return float(measured.mean())
