"""All labels of photos that have several: which of the classes each photo shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelSets:
    """classes: the labels of the training photos, in order.

    indices: those of each photo's labels in `classes`, int32 [N, most labels of a photo], filled up with len(classes).
    """

    classes: tuple[str, ...]
    indices: np.ndarray

    def labeled(self) -> np.ndarray:
        """Returns for each photo whether it has a label that training photos have: bool [N]."""
        return np.any(self.indices < len(self.classes), axis=1)

    def matrix(self, rows: np.ndarray) -> Tensor:
        """Returns which classes the photos in `rows` show: bool [len(rows), C]."""
        indices = torch.from_numpy(self.indices[rows].astype(np.int64))
        matrix = torch.zeros(len(rows), len(self.classes) + 1, dtype=torch.bool)  # the last column: no class
        return matrix.scatter_(1, indices, torch.ones_like(indices, dtype=torch.bool))[:, :-1].contiguous()


def label_sets(labels: Sequence[Sequence[str]], train: Sequence[bool]) -> LabelSets | None:
    """Returns the labels of all photos, None if no training photo has several.

    labels: of each photo; train: whether it is a training photo.
    """
    train_labels = [names for names, is_train in zip(labels, train, strict=True) if is_train]
    if max(map(len, train_labels), default=0) < 2:
        return None
    classes = sorted({name for names in train_labels for name in names})
    index_of = {name: index for index, name in enumerate(classes)}
    indices = np.full((len(labels), max(map(len, labels))), len(classes), np.int32)
    for row, names in enumerate(labels):
        indices[row, : len(names)] = [index_of.get(name, len(classes)) for name in names]
    return LabelSets(tuple(classes), indices)
