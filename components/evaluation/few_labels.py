"""How well a frozen backbone's features do with a few labeled photos of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.photos import Photos
from components.evaluation import knn, linear
from components.evaluation.features import center, standardize

SHOTS = (1, 5, 10)  # labels of each class
DRAWS = 5  # of which photos have a label


def few_labels(vectors: Tensor, photos: Photos, shots: tuple[int, ...] = SHOTS) -> dict[str, dict[str, Any]]:
    """Returns for each number of labels a class the accuracies on test, by the nearest photo and by a linear probe.

    Each is the mean over DRAWS choices of the labeled photos, with their lowest and highest value. A number is left out
    if no class has more training photos than the number before it. vectors: features of all photos [N, D].
    """
    train, test = (photos.rows(split, labeled=True) for split in ("train", "test"))
    labels, expected = photos.labels(train), photos.labels(test)
    largest_class = int(labels.bincount().max())
    scores: dict[str, dict[str, Any]] = {}
    for previous, count in zip((0, *shots), shots, strict=False):
        if largest_class <= previous:
            break
        accuracies = []
        for draw in range(DRAWS):
            order = torch.from_numpy(np.random.default_rng(draw).permutation(len(train)))
            sample = torch.cat([order[labels[order] == label][:count] for label in range(len(photos.classes))])
            bank, queries = center(vectors[train][sample], vectors[test])
            knn_labels = knn.classify(queries, bank, labels[sample], 1)
            train_vectors, test_vectors = (
                standardize(vectors[train][sample], vectors[test]) if count > 1 else (bank, queries)
            )
            weight, bias = linear.fit(train_vectors, labels[sample], len(photos.classes), linear.MIDDLE)
            probe_labels = (test_vectors @ weight.T + bias).argmax(1)
            accuracies.append([float((x == expected).float().mean()) for x in (knn_labels, probe_labels)])
        by_kind = zip(("knn", "linear"), zip(*accuracies, strict=True), strict=True)
        scores[str(count)] = {
            kind: {"mean": float(np.mean(values)), "lowest": min(values), "highest": max(values), "draws": DRAWS}
            for kind, values in by_kind
        }
    return scores
