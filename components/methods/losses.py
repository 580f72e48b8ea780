"""Losses that methods share. A loss of one method lives in that method's file."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from components import ranks


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least: half precision is too coarse for what follows. [B, D]"""
    return normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Each of the 2N projections must find its other view among all the rest: the mean over the 2N.

    a, b: [N, D] on each rank; negatives come from all ranks, with gradient. Chen et al., 2020, equation 1. (SimCLR's
    code sums the means of the two halves, which is twice this.)
    """
    mine = unit(torch.cat([a, b]))
    everyone = ranks.gather(mine)
    logits = mine @ everyone.T / temperature  # [2N, 2N·W]
    n, offset = len(a), ranks.rank() * len(mine)
    row = torch.arange(2 * n, device=a.device)
    logits[row, offset + row] = -torch.inf  # not itself
    return cross_entropy(logits, offset + (row + n) % (2 * n))


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Each query must find its key among the negatives: (loss [], share of queries that do []).

    q, k: unit vectors [B, D], k without gradient; negatives: [K, D]. He et al., 2020, equation 1.
    """
    positive = (q * k).sum(-1, keepdim=True)  # [B, 1]
    logits = torch.cat([positive, q @ negatives.T], dim=1) / temperature  # [B, 1 + K]
    target = logits.new_zeros(len(q), dtype=torch.long)
    return cross_entropy(logits, target), logits.detach().argmax(1).eq(0).float().mean()
