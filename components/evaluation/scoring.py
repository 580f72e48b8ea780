"""A number means something beside what anyone would get without the backbone, on the same pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.data.photos import Photos
from components.evaluation import knn, linear
from components.evaluation.features import center, features, pixel_features, standardize
from components.evaluation.statistics import share
from components.models.backbone import ResNetBackbone, ViTBackbone, build

PIXELS = 16  # raw pixels of full size were no better neighbors (within 0.02 on six sets), and cost a minute


def cannot_score(photos: Photos) -> str | None:
    """Why nothing can be said about classes, in plain words; None if it can."""
    if len(photos.classes) < 2:
        return "the pictures have no labels (class subfolders would be labels)"
    for split in ("train", "test"):
        if not len(photos.rows(split, labeled=True)):
            return f"the {split} split has no labeled picture"
    return None


def scores(vectors: Tensor, photos: Photos, shape: ViTBackbone | ResNetBackbone, k: int, seed: int) -> dict[str, Any]:
    """kNN and linear top-1 on test, of the backbone's `vectors` and of three baselines, all on the same rows.

    vectors: [N, D] of every picture; shape: of the backbone, for one with random weights drawn from `seed`.
    """
    rows = [photos.rows(split, labeled=True) for split in ("train", "val", "test")]
    labels = [photos.labels(r) for r in rows]
    torch.manual_seed(seed)
    commonest = labels[0].mode().values
    found: dict[str, Any] = {"majority": {"top1": share(int((labels[2] == commonest).sum()), len(labels[2]))}}
    compared = {
        "pixels": pixel_features(photos, PIXELS),
        "random": features(build(shape), photos, "random backbone"),
        "backbone": vectors,
    }
    for name, known in compared.items():
        found[name] = score([known[r] for r in rows], labels, len(photos.classes), k)
    return found


def score_blocks(blocks: list[Tensor], photos: Photos, k: int) -> list[dict[str, Any]]:
    """kNN and linear top-1 on test after every block: where what was learned lies, which need not be at the end.

    blocks: [N, D] of every picture. One penalty for all, the middle one: it is the shape of the curve that tells.
    """
    train, test = (photos.rows(split, labeled=True) for split in ("train", "test"))
    labels, held_out = photos.labels(train), photos.labels(test)
    found = []
    for vectors in blocks:
        bank, queries = center(vectors[train], vectors[test])
        voted = knn.classify(queries, bank, labels, min(k, len(train)))
        known, asked = standardize(vectors[train], vectors[test])
        weight, bias = linear.fit(known, labels, len(photos.classes), linear.MIDDLE)
        probed = (asked @ weight.T + bias).argmax(1)
        kinds = {"knn": voted, "linear": probed}
        found.append({kind: share(int((said == held_out).sum()), len(test)) for kind, said in kinds.items()})
    return found


def score(vectors: list[Tensor], labels: list[Tensor], classes: int, k: int) -> dict[str, Any]:
    """vectors [N, D] and labels [N] of the train, val and test rows -> both scores with their 95 % intervals."""
    k = min(k, len(labels[0]))
    bank, _, queries = center(*vectors)
    voted = knn.classify(queries, bank, labels[0], k)
    train, val, test = standardize(*vectors)
    probed, penalty = linear.probe((train, labels[0]), (val, labels[1]), test, classes)
    total = len(labels[2])
    return {
        "knn": {**share(int((voted == labels[2]).sum()), total), "k": k},
        "linear": {**share(int((probed == labels[2]).sum()), total), "penalty": penalty},
    }
