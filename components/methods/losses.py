"""Losses that methods share. A loss of one method lives in that method's file."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from components import ranks

P = ParamSpec("P")
R = TypeVar("R")


def precise(loss: Callable[P, R]) -> Callable[P, R]:
    """Outside of autocast, which would multiply in bf16 again what was brought to float32 just before."""

    @wraps(loss)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(x.device.type for x in args if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*args, **kwargs)

    return run


def full(x: Tensor) -> Tensor:
    """In float32 at least: half precision is too coarse for what follows."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least. [B, D]"""
    return normalize(full(x), dim=-1)


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of a [B, D] with its row of b, the mean of all: []."""
    return (unit(a) * unit(b)).sum(-1).mean()


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """Deviation of the unit rows of z [B, D], times √D: 1 where they point everywhere, 0 where all are one.

    Chen & He, 2021, section 4.1 (without the √D, which makes one scale of all widths).
    """
    return unit(z).std(0).mean() * z.shape[1] ** 0.5


@precise
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


@precise
def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Each query must find its key among the negatives: (loss [], share of queries that do []).

    q, k: unit vectors [B, D], k without gradient; negatives: [K, D]. He et al., 2020, equation 1.
    """
    positive = (q * k).sum(-1, keepdim=True)  # [B, 1]
    logits = torch.cat([positive, q @ negatives.T], dim=1) / temperature  # [B, 1 + K]
    target = logits.new_zeros(len(q), dtype=torch.long)
    return cross_entropy(logits, target), logits.detach().argmax(1).eq(0).float().mean()
