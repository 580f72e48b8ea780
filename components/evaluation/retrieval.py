"""Retrieval of photos by texts and of texts by photos: recall at k, beside chance and beside exchanged texts.

A text that several photos have is one candidate, and each of its photos is right, so that duplicates are no mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.evaluation.statistics import proportion_with_ci

KS = (1, 5, 10)
EXCHANGES = 20  # over which `shuffled` is a mean


def retrieval(similarity: Tensor, matches: Tensor, seed: int, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Returns recall at each k, of photos that look for texts and of texts that look for photos.

    similarity, matches: [photos, texts]; matches: bool, whether the photo has this text; every row and column has one.
    Each recall is a proportion of queries with a 95 % interval, and `chance` (of a random order) and `shuffled` (the
    same similarities, but the photos' texts are exchanged among them). A k of all candidates or more is left out.
    """
    permutations = list(_exchanges(len(matches), seed))
    results: dict[str, Any] = {"photos": len(matches), "texts": matches.shape[1]}
    for name in ("photo_to_text", "text_to_photo"):
        query_scores, relevant = (similarity, matches) if name == "photo_to_text" else (similarity.T, matches.T)
        usable_ks = [k for k in ks if k < query_scores.shape[1]]
        best = query_scores.topk(max(usable_ks, default=0), dim=1).indices  # [Q, K]
        shuffled_recall = torch.zeros(best.shape[1])
        for permutation in permutations:
            texts = matches[permutation]
            shuffled_recall += (
                hits_by_rank(best, texts if name == "photo_to_text" else texts.T).float().mean(0) / EXCHANGES
            )
        hits = hits_by_rank(best, relevant)
        results[name] = {
            str(k): {
                **proportion_with_ci(int(hits[:, k - 1].sum()), len(relevant)),
                "chance": chance(relevant, k),
                "shuffled": float(shuffled_recall[k - 1]),
            }
            for k in usable_ks
        }
    return results


def _exchanges(count: int, seed: int) -> Iterator[Tensor]:
    """Yields EXCHANGES random orders of `count` photos in which none is at its own place: int64 [count]."""
    rng = np.random.default_rng(seed)
    for _ in range(EXCHANGES):
        cycle = rng.permutation(count)
        permutation = np.empty_like(cycle)
        permutation[cycle] = np.roll(cycle, 1)
        yield torch.from_numpy(permutation)


def hits_by_rank(best: Tensor, matches: Tensor) -> Tensor:
    """Returns for each query whether a match is among its 1 … K best candidates: bool [Q, K].

    best: the candidates' indices, best first, int64 [Q, K]. matches: bool [Q, C].
    """
    return matches.gather(1, best).cumsum(1) > 0


def chance(matches: Tensor, k: int) -> float:
    """Returns the expected recall at k of a random order: 1 - C(c - m, k) / C(c, k), of c candidates m match."""
    total = matches.shape[1]
    negatives, miss_probability = total - matches.sum(1).double(), torch.ones(len(matches), dtype=torch.float64)
    for draw in range(k):
        miss_probability *= (negatives - draw).clamp_min(0) / (total - draw)
    return float(1 - miss_probability.mean())
