"""All that is measured where the photos are generated, so that it is known what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.photos import Photos
from components.data.truth import Truth
from components.evaluation.attention import attends_by_class, attention_maps, similarity_maps
from components.evaluation.dense import dense_rows, enlarged, pixel_places, segmentation
from components.evaluation.features import PIXELS, eval_mode, features, pixel_features, place_features
from components.evaluation.kept import measure_kept, sampled_rows
from components.evaluation.localization import boxes_of, corloc, fixed_box
from components.models.backbone import Backbone

UNKNOWN = "it is not known what these photos show; it is of the generated ones (data.source: scenes)"


def measure_known(
    backbone: Backbone, photos: Photos, truths: Sequence[Truth], neighbors: int, vectors: Tensor | None = None
) -> dict[str, Any]:
    """Returns what is measured of one backbone: "kept", see kept.py, and "dense": mean IoU of places, and CorLoc.

    vectors: features of all photos [N, D], if they are there.
    """
    rows = sampled_rows(photos)
    if vectors is None:
        parts = list(features(backbone, photos, "features", np.concatenate(rows)).split([len(r) for r in rows]))
    else:
        parts = [vectors[torch.from_numpy(r)] for r in rows]
    dense = dense_rows(photos)
    dense_features = [place_features(backbone, photos, r) for r in dense]
    size = truths[0].mask.shape
    maps = [
        enlarged(_maps(backbone, photos, r, x)[:, None], size)[:, 0] for r, x in zip(dense, dense_features, strict=True)
    ]
    train, test = ((x.numpy(), _boxes(truths, r)) for x, r in zip(maps, dense, strict=True))
    return {
        "kept": measure_kept(parts, rows, truths),
        "dense": {**segmentation(dense_features, dense, truths, neighbors), "corloc": corloc(train, test)},
    }


def known_baselines(
    backbone: Backbone, photos: Photos, truths: Sequence[Truth], neighbors: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Returns the same of raw pixels and of the backbone's shape with random weights, as "pixels" and "random".

    In place of CorLoc, pixels have that of the best fixed box ("fixed_box").
    """
    rows, dense = sampled_rows(photos), dense_rows(photos)
    pixel_vectors = pixel_features(photos, PIXELS, np.concatenate(rows)).split([len(r) for r in rows])
    train, test = (_boxes(truths, r) for r in dense)
    dense_features = [pixel_places(photos, r) for r in dense]
    pixels = {
        "kept": measure_kept(pixel_vectors, rows, truths),
        "dense": {
            **segmentation(dense_features, dense, truths, neighbors),
            "fixed_box": fixed_box(train, test, truths[0].mask.shape[0]),
        },
    }
    torch.manual_seed(seed)
    return {"pixels": pixels, "random": measure_known(backbone.untrained(), photos, truths, neighbors)}


def _boxes(truths: Sequence[Truth], rows: np.ndarray) -> list[np.ndarray]:
    return [boxes_of(truths[row].mask) for row in rows]


def _maps(backbone: Backbone, photos: Photos, rows: np.ndarray, dense_features: Tensor) -> Tensor:
    """Returns where in photos a backbone looks, float32 [n, h, w] from 0 to 1. dense_features: [n, h, w, D]."""
    if backbone.patches or not attends_by_class(backbone):
        return similarity_maps(dense_features)
    device = next(backbone.parameters()).device
    batches = photos.batches(rows, backbone.config.image_size, backbone.config.square)
    with eval_mode(backbone):
        return torch.cat([attention_maps(backbone, batch.to(device))[0].cpu() for batch in batches])
