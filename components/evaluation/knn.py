"""Classification by nearest neighbors. It has nothing to train and nothing to tune, so compare methods by it first.

Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section 3.4.
https://arxiv.org/abs/1805.01978
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

TILE = 1024  # queries at a time, and
BANK = 65_536  # rows of the bank at a time: memory is TILE × BANK numbers, however large the bank
GROUP = 64  # numbers of which `largest` looks at the greatest first


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k most similar rows of `bank` by cosine, best first: similarities [Q, k] and row numbers [Q, k]."""
    queries, bank = normalize(queries, dim=1), normalize(bank, dim=1)
    tiles = [_nearest(tile, bank, k) for tile in queries.split(TILE)]
    return torch.cat([similarity for similarity, _ in tiles]), torch.cat([rows for _, rows in tiles])


def _nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Like `nearest`, for unit vectors: goes through the bank in parts and keeps the best k so far."""
    similarity, rows = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(bank), BANK):
        products = queries @ bank[start : start + BANK].T
        new, columns = largest(products, k)
        similarity, rows = best((similarity, rows), (new, columns + start), k)
    return similarity, rows


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest numbers of each row, or all if there are fewer, best first: values and columns [Q, k].

    The k groups with the greatest maxima hold them all, so most numbers are only read, not sorted.
    """
    groups, rest = divmod(x.shape[1], GROUP)
    if groups <= 2 * k:
        return x.topk(min(k, x.shape[1]))
    grouped = x[:, : groups * GROUP].unflatten(1, (groups, GROUP))
    top_groups = grouped.amax(2).topk(k).indices  # [Q, k]
    columns = (top_groups[:, :, None] * GROUP + torch.arange(GROUP, device=x.device)).flatten(1)
    last = torch.arange(x.shape[1] - rest, x.shape[1], device=x.device)
    columns = torch.cat([columns, last.expand(len(x), rest)], 1)
    values, positions = x.gather(1, columns).topk(k)
    return values, columns.gather(1, positions)


def best(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Returns the k best of two lists of similarities and rows of each query, both [Q, any], best first."""
    similarity, rows = torch.cat([first[0], second[0]], 1), torch.cat([first[1], second[1]], 1)
    similarity, columns = similarity.topk(min(k, similarity.shape[1]))
    return similarity, rows.gather(1, columns)


def classify(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float = 0.07) -> Tensor:
    """Returns the class of each query, int64 [Q]: a vote of its k neighbors, weighted exp(similarity / temperature)."""
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}; allowed: 1 to {len(bank)}, the number of labeled training photos")
    similarity, rows = nearest(queries, bank, k)
    return _vote(similarity, labels[rows], temperature)


def classify_leave_one_out(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float = 0.07) -> Tensor:
    """Like `classify`, for rows of the bank itself: no photo votes for its own class. queries: rows of bank, [Q]."""
    if not 1 <= k < len(bank):
        raise ValueError(f"k is {k}; allowed: 1 to {len(bank) - 1}, the number of other labeled training photos")
    similarity, rows = others(queries, *nearest(bank[queries], bank, k + 1))
    return _vote(similarity, labels[rows], temperature)


def others(queries: Tensor, similarity: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the neighbors of rows of the bank without the row itself: of k + 1, similarities and rows [Q, k]."""
    itself = rows == queries[:, None]
    itself[~itself.any(1), -1] = True  # duplicates of a photo may push it out of its own neighbors
    shape = (len(rows), rows.shape[1] - 1)
    return similarity[~itself].view(shape), rows[~itself].view(shape)


def shares(similarity: Tensor, labels: Tensor, classes: int, temperature: float = 0.07) -> Tensor:
    """Returns the share of each class in the vote of neighbors with these similarities and labels: [Q, classes].

    similarity, labels: [Q, k], best first; a vote is weighted exp(similarity / temperature).
    """
    votes = similarity.new_zeros(len(similarity), classes)
    # the best similarity is subtracted so that exp cannot overflow; that does not change the shares
    votes.scatter_add_(1, labels, ((similarity - similarity[:, :1]) / temperature).exp())
    return votes / votes.sum(1, keepdim=True)


def _vote(similarity: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns the winning class, int64 [Q], of neighbors with these similarities and labels, both [Q, k]."""
    return shares(similarity, labels, int(labels.max()) + 1, temperature).argmax(1)
