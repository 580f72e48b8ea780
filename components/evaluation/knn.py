"""Nearest neighbors need no training, so they cannot flatter: the first number to look at.

Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section 3.4.
https://arxiv.org/abs/1805.01978
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

TILE = 1024  # queries at a time …
BANK = 65_536  # … and rows of the bank: memory is TILE × BANK numbers, however large the bank


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar rows of `bank` by cosine: similarities [Q, k] and places [Q, k], best first."""
    queries, bank = normalize(queries, dim=1), normalize(bank, dim=1)
    found = [_nearest(tile, bank, k) for tile in queries.split(TILE)]
    return torch.cat([values for values, _ in found]), torch.cat([places for _, places in found])


def _nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of unit vectors, one part of the bank after the other: the best so far against the best of the next."""
    values, places = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(bank), BANK):
        part = queries @ bank[start : start + BANK].T
        new, at = part.topk(min(k, part.shape[1]))
        values, places = torch.cat([values, new], 1), torch.cat([places, at + start], 1)
        values, kept = values.topk(min(k, values.shape[1]))
        places = places.gather(1, kept)
    return values, places


def classify(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float = 0.07) -> Tensor:
    """The class of each query, by a vote of its k neighbors weighted with exp(similarity / temperature): int64 [Q]."""
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}; allowed: 1 to {len(bank)}, the labeled training pictures")
    similarity, places = nearest(queries, bank, k)
    votes = similarity.new_zeros(len(queries), int(labels.max()) + 1)
    # the best neighbor is subtracted so that exp cannot overflow; a vote's winner does not change
    votes.scatter_add_(1, labels[places], ((similarity - similarity[:, :1]) / temperature).exp())
    return votes.argmax(1)
