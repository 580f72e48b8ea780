"""A model that looks at the picture must beat the best guess made without it, and must suffer from a wrong picture."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np


def normalized(answer: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (of the VQA rule, https://arxiv.org/abs/1505.00468)."""
    bare = answer.lower().translate({ord(mark): " " for mark in string.punctuation})
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def blind_answers(training: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The most common training answer to each question, the first in the alphabet of equals."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in training:
        counts[question][answer] += 1
    return {question: min(seen, key=lambda answer: (-seen[answer], answer)) for question, seen in counts.items()}


def derangement(rows: np.ndarray, seed: int) -> np.ndarray:
    """For each entry of `rows` the row of another picture; equal rows get the same other one. int64 [len(rows)].

    Raises ValueError if there are fewer than two pictures.
    """
    pictures = np.random.default_rng(seed).permutation(np.unique(rows))
    if len(pictures) < 2:
        raise ValueError("pictures can be exchanged only if there are two at least")
    other = dict(zip(pictures.tolist(), np.roll(pictures, 1).tolist(), strict=True))
    return np.array([other[row] for row in rows.tolist()], dtype=np.int64)


def bootstrap(values: np.ndarray, pictures: np.ndarray, seed: int, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of `values`, drawing whole pictures, as the questions of one are not independent."""
    _, picture = np.unique(pictures, return_inverse=True)
    sums, counts = np.bincount(picture, values), np.bincount(picture)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)
