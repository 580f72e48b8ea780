"""Scores answers: against the best guess without the image, and with another image in its place."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np


def normalized(answer: str) -> str:
    """Returns lower case without punctuation and articles, with single spaces (as the VQA metric, https://arxiv.org/abs/1505.00468)."""
    plain = answer.lower().translate({ord(mark): " " for mark in string.punctuation})
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def blind_answers(training: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the most common training answer to each question, the first in alphabetical order among equals."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in training:
        counts[question][answer] += 1
    return {question: min(seen, key=lambda answer: (-seen[answer], answer)) for question, seen in counts.items()}


def derangement(rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns for each entry of `rows` the row of another image, the same one for equal rows. int64 [len(rows)].

    Raises ValueError if there are fewer than two images.
    """
    images = np.random.default_rng(seed).permutation(np.unique(rows))
    if len(images) < 2:
        raise ValueError("exchanging images needs at least two; there is one")
    other = dict(zip(images.tolist(), np.roll(images, 1).tolist(), strict=True))
    return np.array([other[row] for row in rows.tolist()], dtype=np.int64)


def bootstrap(values: np.ndarray, images: np.ndarray, seed: int, draws: int = 2000) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of `values`, one value a question.

    Whole images are drawn, because the answers to the questions about one image are not independent.
    """
    _, image = np.unique(images, return_inverse=True)
    sums, counts = np.bincount(image, values), np.bincount(image)
    samples = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    low, high = np.quantile(sums[samples].sum(1) / counts[samples].sum(1), (0.025, 0.975))
    return float(low), float(high)
