"""CIDEr-D: how much a caption has in common with the reference captions of its photo, and not with those of others.

Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, 2015, https://arxiv.org/abs/1411.5726, section 7
and the official code: https://github.com/tylin/coco-caption.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np

from components.connector.scoring import words

ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # of the penalty of a caption that is longer or shorter than its reference

Ngram = tuple[str, ...]


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the CIDEr-D of each photo's caption against its references, 0 to 10, float64 [len(captions)].

    An n-gram weighs more if fewer photos have it in a reference; with a single photo all weights, and the score, are 0.
    Raises ValueError for a photo without a reference.
    """
    if not all(references):
        raise ValueError("every photo needs a reference caption, and one has none")
    reference_ngrams = [[_ngrams(text) for text in texts] for texts in references]
    photos_with = Counter(chain.from_iterable(set().union(*texts) for texts in reference_ngrams))
    log_photos = math.log(max(1, len(captions)))

    def weigh(ngrams: Counter[Ngram]) -> list[dict[Ngram, float]]:
        """Returns tf-idf of the n-grams of each order. As in the official code, tf is a count and no fraction."""
        vectors: list[dict[Ngram, float]] = [{} for _ in range(ORDERS)]
        for ngram, count in ngrams.items():
            vectors[len(ngram) - 1][ngram] = count * (log_photos - math.log(max(1, photos_with[ngram])))
        return vectors

    def score(caption: Counter[Ngram], texts: list[Counter[Ngram]]) -> float:
        caption_vectors = weigh(caption)
        penalties = [math.exp(-((_bigrams(caption) - _bigrams(text)) ** 2) / (2 * SIGMA**2)) for text in texts]
        scores = [p * _similarity(caption_vectors, weigh(text)) for p, text in zip(penalties, texts, strict=True)]
        return 10 * sum(scores) / len(scores)

    return np.array([score(_ngrams(text), texts) for text, texts in zip(captions, reference_ngrams, strict=True)])


def _ngrams(text: str) -> Counter[Ngram]:
    parts = words(text)
    return Counter(tuple(parts[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(parts) - n + 1))


def _bigrams(ngrams: Counter[Ngram]) -> int:
    """Returns the number of pairs of words, by which the official code measures the length of a caption."""
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)


def _similarity(caption: list[dict[Ngram, float]], reference: list[dict[Ngram, float]]) -> float:
    """Returns the cosine, averaged over the orders. A word repeated more often than in the reference adds nothing."""
    total = 0.0
    for caption_weights, reference_weights in zip(caption, reference, strict=True):
        norm = math.hypot(*caption_weights.values()) * math.hypot(*reference_weights.values())
        total += sum(
            min(caption_weights[ngram], reference_weights[ngram]) * reference_weights[ngram]
            for ngram in caption_weights.keys() & reference_weights
        ) / (norm or 1)
    return total / ORDERS
