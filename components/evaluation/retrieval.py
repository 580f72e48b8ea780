"""Retrieval of photos by texts and of texts by photos: recall at k, beside chance and beside exchanged texts.

A text that several photos have is one candidate, and each of its photos is right, so that duplicates are no mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.evaluation.statistics import proportion_with_ci

KS = (1, 5, 10)


def retrieval(similarity: Tensor, matches: Tensor, seed: int, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Returns recall at each k, of photos that look for texts and of texts that look for photos.

    similarity, matches: [photos, texts]; matches: bool, whether the photo has this text; every row and column has one.
    Each recall is a proportion of queries with a 95 % interval, and `chance` (of a random order) and `shuffled` (the
    same similarities, but the photos' texts are exchanged among them). A k of all candidates or more is left out.
    """
    cycle = np.random.default_rng(seed).permutation(len(matches))
    other = np.empty_like(cycle)
    other[cycle] = np.roll(cycle, 1)
    shuffled = matches[torch.from_numpy(other)]
    directions = {
        "photo_to_text": (similarity, matches, shuffled),
        "text_to_photo": (similarity.T, matches.T, shuffled.T),
    }
    results: dict[str, Any] = {"photos": len(matches), "texts": matches.shape[1]}
    for name, (order, right, exchanged) in directions.items():
        results[name] = {
            str(k): {
                **proportion_with_ci(int(found(order, right, k).sum()), len(right)),
                "chance": chance(right, k),
                "shuffled": float(found(order, exchanged, k).float().mean()),
            }
            for k in ks
            if k < order.shape[1]
        }
    return results


def found(similarity: Tensor, matches: Tensor, k: int) -> Tensor:
    """Returns for each query whether a match is among its k most similar candidates: bool [Q]. Both: [Q, C]."""
    return matches.gather(1, similarity.topk(k, dim=1).indices).any(1)


def chance(matches: Tensor, k: int) -> float:
    """Returns the expected recall at k of a random order: 1 - C(c - m, k) / C(c, k), of c candidates m match."""
    total = matches.shape[1]
    others, missed = total - matches.sum(1).double(), torch.ones(len(matches), dtype=torch.float64)
    for drawn in range(k):
        missed *= (others - drawn).clamp_min(0) / (total - drawn)
    return float(1 - missed.mean())
