"""Nearest neighbors need no training, so they cannot flatter: the first number to look at.

Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section 3.4.
https://arxiv.org/abs/1805.01978
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

TILE = 1024  # queries at a time: memory is TILE × len(bank) floats


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar rows of `bank` by cosine: similarities [Q, k] and places [Q, k], best first."""
    bank = normalize(bank, dim=1)
    found = [(normalize(tile, dim=1) @ bank.T).topk(k) for tile in queries.split(TILE)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def classify(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float = 0.07) -> Tensor:
    """The class of each query, by a vote of its k neighbors weighted with exp(similarity / temperature): int64 [Q]."""
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}; allowed: 1 to {len(bank)}, the labeled training pictures")
    similarity, places = nearest(queries, bank, k)
    votes = torch.zeros(len(queries), int(labels.max()) + 1)
    # the best neighbor is subtracted so that exp cannot overflow; a vote's winner does not change
    votes.scatter_add_(1, labels[places], ((similarity - similarity[:, :1]) / temperature).exp())
    return votes.argmax(1)
