"""Accuracy of a backbone by nearest neighbors and by a linear probe, and of baselines on the same photos."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.photos import Photos
from components.evaluation import knn, linear
from components.evaluation.features import PIXELS, center, features, pixel_features, standardize
from components.evaluation.similar import similar_photos
from components.evaluation.statistics import paired_difference, proportion_with_ci
from components.models.backbone import Backbone

FEWEST_LABELS = 30  # that an accuracy is measured on; with fewer its 95 % interval may be wider than 0.34
MOST_LEFT_OUT = 4096  # training photos classified by the others, where val has fewer

Correct = dict[str, Tensor]  # whether a photo is right, by kind (knn, linear): bool [N], of the labeled test photos


def cannot_score(photos: Photos) -> str | None:
    """Returns why accuracy cannot be measured on these photos, None if it can."""
    if not photos.classes and photos.label_sets:
        return "no photo has one label alone; all that are labeled have several, which adapt learns"
    if not photos.classes:
        return "the photos have no labels (class subfolders would be labels)"
    if not len(photos.rows("test", labeled=True)):
        return "the test split has no labeled photo"
    train_classes = photos.labels(photos.rows("train", labeled=True)).unique()
    if len(train_classes) < 2:
        return (
            "the labeled training photos are all of one class"
            if len(train_classes)
            else "no training photo has a label"
        )
    return None


def baselines(photos: Photos, backbone: Backbone, k: int, seed: int) -> tuple[dict[str, Any], dict[str, Correct]]:
    """Returns `judge` of the most frequent class, of raw pixels, and of a random backbone: scores, and right photos.

    The random backbone has the shape of `backbone` and untrained weights drawn from `seed`.
    """
    train, test = (photos.labels(photos.rows(split, labeled=True)) for split in ("train", "test"))
    torch.manual_seed(seed)
    majority = train.mode().values.expand(len(test))
    scores: dict[str, Any] = {"majority": {"top1": _accuracy(majority, test)}}
    correct = {"majority": dict.fromkeys(("knn", "linear"), majority == test)}
    scores["pixels"], correct["pixels"] = judge(pixel_features(photos, PIXELS), photos, k)
    untrained = features(backbone.untrained(), photos, "random backbone")
    scores["random"], correct["random"] = judge(untrained, photos, k)
    return scores, correct


def score(vectors: Tensor, photos: Photos, k: int) -> dict[str, Any]:
    """Returns kNN and linear top-1 accuracy on test with 95 % intervals, and how well test photos find each other.

    vectors: features of all photos [N, D]. retrieval: see similar.py.
    """
    return judge(vectors, photos, k)[0]


def judge(vectors: Tensor, photos: Photos, k: int) -> tuple[dict[str, Any], Correct]:
    """Returns `score`, and which of the labeled test photos are right."""
    rows = [photos.rows(split, labeled=True) for split in ("train", "val", "test")]
    labels, parts = [photos.labels(r) for r in rows], [vectors[r] for r in rows]
    k = min(k, len(labels[0]))
    bank, _, queries = center(*parts)
    train, val, test = standardize(*parts)
    by_neighbors = knn.classify(queries, bank, labels[0], k)
    by_probe, penalty = linear.probe((train, labels[0]), (val, labels[1]), test, len(photos.classes))
    scores = {
        "knn": {**_accuracy(by_neighbors, labels[2]), "k": k},
        "linear": {**_accuracy(by_probe, labels[2]), "penalty": penalty},
        "retrieval": similar_photos(vectors, photos),
    }
    return scores, {"knn": by_neighbors == labels[2], "linear": by_probe == labels[2]}


def compare(vectors: Tensor, start: Tensor, photos: Photos, k: int) -> dict[str, Any]:
    """Returns by how much kNN accuracy on test is above that of the start, on the same photos, and a verdict in words.

    vectors, start: features of all photos [N, D], of the backbone and of the weights that it started from.
    """
    train, test = (photos.rows(split, labeled=True) for split in ("train", "test"))
    labels, expected = photos.labels(train), photos.labels(test)
    correct = []
    for x in (vectors, start):
        bank, queries = center(x[train], x[test])
        correct.append(knn.classify(queries, bank, labels, min(k, len(train))) == expected)
    difference = paired_difference(*correct)
    verdict = "not clearly different from its start"
    if difference["low"] > 0 or difference["high"] < 0:
        verdict = "better than its start" if difference["low"] > 0 else "worse than its start"
    return {"knn": difference, "verdict": verdict}


def selection_score(vectors: Tensor, photos: Photos, k: int, seed: int) -> dict[str, Any]:
    """Returns the kNN accuracy by which methods are compared before test is used, and `on`: the photos used.

    These are the val photos; if fewer than FEWEST_LABELS have a label, training photos, each classified by the others.
    vectors: features of all photos [N, D].
    """
    train, val = (photos.rows(split, labeled=True) for split in ("train", "val"))
    labels = photos.labels(train)
    if len(val) >= FEWEST_LABELS:
        bank, queries = center(vectors[train], vectors[val])
        predicted = knn.classify(queries, bank, labels, min(k, len(train)))
        return {"knn": _accuracy(predicted, photos.labels(val)), "on": f"the {len(val)} labeled val photos"}
    (bank,) = center(vectors[train])
    held_out = torch.from_numpy(np.random.default_rng(seed).permutation(len(train))[:MOST_LEFT_OUT])
    predicted = knn.classify_leave_one_out(held_out, bank, labels, min(k, len(train) - 1))
    on = f"{len(held_out)} training photos, each classified by the others (only {len(val)} val photos have labels)"
    return {"knn": _accuracy(predicted, labels[held_out]), "on": on}


def score_blocks(blocks: list[Tensor], photos: Photos, k: int) -> list[dict[str, Any]]:
    """Returns kNN and linear top-1 accuracy on test after each block; the best block need not be the last.

    blocks: features of all photos after each block, [N, D]. All probes use the middle penalty.
    """
    train, test = (photos.rows(split, labeled=True) for split in ("train", "test"))
    labels, expected = photos.labels(train), photos.labels(test)
    scores = []
    for vectors in blocks:
        bank, queries = center(vectors[train], vectors[test])
        by_neighbors = knn.classify(queries, bank, labels, min(k, len(train)))
        train_features, test_features = standardize(vectors[train], vectors[test])
        weight, bias = linear.fit(train_features, labels, len(photos.classes), linear.MIDDLE)
        by_probe = (test_features @ weight.T + bias).argmax(1)
        scores.append({"knn": _accuracy(by_neighbors, expected), "linear": _accuracy(by_probe, expected)})
    return scores


def _accuracy(predicted: Tensor, expected: Tensor) -> dict[str, float]:
    return proportion_with_ci(int((predicted == expected).sum()), len(expected))
