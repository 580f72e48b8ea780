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
    if not photos.classes:
        return "the pictures have no labels (class subfolders would be labels)"
    if not len(photos.rows("test", labeled=True)):
        return "the test split has no labeled picture"
    known = photos.labels(photos.rows("train", labeled=True)).unique()
    if len(known) < 2:
        return "the labeled training pictures are all of one class" if len(known) else "no training picture has a label"
    return None


def baselines(photos: Photos, shape: ViTBackbone | ResNetBackbone, k: int, seed: int) -> dict[str, Any]:
    """What anyone would get on the same test rows: the commonest class, raw pixels, and a backbone of that shape with
    random weights, drawn from `seed`.
    """
    train, test = (photos.labels(photos.rows(split, labeled=True)) for split in ("train", "test"))
    torch.manual_seed(seed)
    return {
        "majority": {"top1": share(int((test == train.mode().values).sum()), len(test))},
        "pixels": score(pixel_features(photos, PIXELS), photos, k),
        "random": score(features(build(shape), photos, "random backbone"), photos, k),
    }


def score(vectors: Tensor, photos: Photos, k: int) -> dict[str, Any]:
    """kNN and linear top-1 on test with their 95 % intervals. vectors: [N, D] of every picture."""
    rows = [photos.rows(split, labeled=True) for split in ("train", "val", "test")]
    labels, parts = [photos.labels(r) for r in rows], [vectors[r] for r in rows]
    k = min(k, len(labels[0]))
    bank, _, queries = center(*parts)
    voted = knn.classify(queries, bank, labels[0], k)
    train, val, test = standardize(*parts)
    probed, penalty = linear.probe((train, labels[0]), (val, labels[1]), test, len(photos.classes))
    total = len(labels[2])
    return {
        "knn": {**share(int((voted == labels[2]).sum()), total), "k": k},
        "linear": {**share(int((probed == labels[2]).sum()), total), "penalty": penalty},
    }


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
