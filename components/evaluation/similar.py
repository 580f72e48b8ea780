"""How well test photos find those of their class, and those with their caption, among all other test photos.

Recall at k: a query has found another one of its kind among its k nearest. MAP@R: Musgrave et al., A Metric Learning
Reality Check, ECCV 2020, section 3.1; it is 1 only if all R others of the kind come first. https://arxiv.org/abs/2003.08505
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.photos import Photos
from components.data.texts import captions
from components.evaluation.features import center
from components.evaluation.retrieval import KS, chance
from components.evaluation.statistics import Z95, proportion_with_ci

MOST = 4096  # test photos, drawn at random where there are more
TILE = 1024  # queries at a time


def similar_photos(vectors: Tensor, photos: Photos, seed: int = 0) -> dict[str, Any]:
    """Returns recall at k and MAP@R by class and by caption, each with `chance`, the expectation of a random order.

    vectors: features of all photos [N, D]. by_class is missing without two test photos of a class, by_caption without
    two of a caption. `gallery`: the photos that are searched, of which the query itself is left out.
    """
    texts = captions(photos, "test") if (photos.folder / "questions.parquet").is_file() else {}
    random, results = np.random.default_rng(seed), {}
    labeled, described = (
        np.sort(random.permutation(rows)[:MOST])
        for rows in (photos.rows("test", labeled=True), np.array(sorted(texts), dtype=np.int64))
    )
    labels = photos.labels(labeled)
    by_class, by_caption = labels[:, None] == labels, shared([texts[row] for row in described.tolist()])
    for name, rows, is_same in (("by_class", labeled, by_class), ("by_caption", described, by_caption)):
        matches = is_same & ~torch.eye(len(rows), dtype=torch.bool)
        if matches.any():
            _, centered = center(vectors[photos.rows("train")], vectors[rows])
            results[name] = scores(centered, matches)
    return results


def shared(texts: list[list[str]]) -> Tensor:
    """Returns whether two photos have a text in common: bool [N, N]."""
    owners: dict[str, list[int]] = {}
    for index, photo_texts in enumerate(texts):
        for text in photo_texts:
            owners.setdefault(text, []).append(index)
    has_common_text = torch.zeros(len(texts), len(texts), dtype=torch.bool)
    for indices in owners.values():
        has_common_text[torch.tensor(indices)[:, None], torch.tensor(indices)] = True
    return has_common_text


def scores(vectors: Tensor, matches: Tensor) -> dict[str, Any]:
    """Returns recall at each k and MAP@R of photos that look for others among each other.

    vectors: unit vectors [N, D]; matches: bool [N, N], which photos are right for each query; the diagonal is False.
    Queries without a match are left out.
    """
    queries = matches.any(1).nonzero()[:, 0]
    count, relevant = len(vectors), matches[queries].sum(1)
    depth = min(count - 1, max(int(relevant.max()), *KS))
    hits = torch.cat([_hits(vectors, matches, part, depth) for part in queries.split(TILE)])  # [Q, depth]
    ranked = hits.cumsum(1) > 0
    results: dict[str, Any] = {
        str(k): {
            **proportion_with_ci(int(ranked[:, k - 1].sum()), len(queries)),
            "chance": chance(_without_itself(matches, queries), k),
        }
        for k in KS
        if k < count - 1
    }
    values = average_precision_at_r(hits, relevant)
    half = Z95 * float(values.std(correction=0)) / len(values) ** 0.5
    mean = float(values.mean())
    map_at_r = {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "of": len(values)}
    expected = float(chance_of_map_at_r(relevant, count - 1).mean())
    return {"gallery": count, **results, "map_at_r": {**map_at_r, "chance": expected}}


def average_precision_at_r(hits: Tensor, relevant: Tensor) -> Tensor:
    """Returns 1/R · Σ_{i ≤ R} P(i) · rel(i) of each query, P(i) its precision at i: float64 [Q].

    hits: bool [Q, depth], whether the candidates, best first, are right; relevant: R, int64 [Q], at most depth.
    """
    ranks = torch.arange(1, hits.shape[1] + 1)
    precision = hits.cumsum(1).double() / ranks
    relevant_hits = hits & (ranks <= relevant[:, None])
    return (precision * relevant_hits).sum(1) / relevant


def chance_of_map_at_r(relevant: Tensor, candidates: int) -> Tensor:
    """Returns the expectation of `average_precision_at_r` for a random order of the candidates: float64 [Q].

    Candidate i is right with p = R / n, and one before it, if i is, with (R - 1) / (n - 1).
    """
    r, n = relevant.double(), candidates
    harmonic = (1 / torch.arange(1, int(relevant.max()) + 1).double()).cumsum(0)[relevant - 1]  # Σ_{i ≤ R} 1 / i
    return (harmonic + (r - harmonic) * (r - 1) / max(1, n - 1)) / n


def _hits(vectors: Tensor, matches: Tensor, queries: Tensor, depth: int) -> Tensor:
    similarity = vectors[queries] @ vectors.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf  # not itself
    return matches[queries].gather(1, similarity.topk(depth).indices)


def _without_itself(matches: Tensor, queries: Tensor) -> Tensor:
    """Returns the rows of `matches` for the queries, without each query's own column: [Q, N - 1]."""
    itself = torch.eye(len(matches), dtype=torch.bool)[queries]
    return matches[queries][~itself].view(len(queries), -1)
