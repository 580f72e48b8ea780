"""Losses that methods share. A loss of one method lives in that method's file."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

from components import ranks
from components.methods.tiles import AcrossViews, NTXent

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
    return NTXent.apply(mine, everyone, ranks.rank() * len(mine), temperature)


@precise
def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Each query must find its key among the negatives: (loss [], share of queries that do []).

    q, k: unit vectors [B, D], k without gradient; negatives: [K, D]. He et al., 2020, equation 1.
    """
    positive = (q * k).sum(-1, keepdim=True)  # [B, 1]
    logits = torch.cat([positive, q @ negatives.T], dim=1) / temperature  # [B, 1 + K]
    target = logits.new_zeros(len(q), dtype=torch.long)
    return cross_entropy(logits, target), logits.detach().argmax(1).eq(0).float().mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Share the vectors of all ranks evenly among the prototypes: probabilities [B, K], from cosines [B, K].

    B may differ from rank to rank, and may be 0. Caron et al., 2020 (SwAV), equation 3; Cuturi, NIPS 2013. Rounds
    scale the prototypes to equal shares, then the vectors; after the last every row sums to 1. Raises ValueError for a
    temperature at which float32 would hold nothing of a vector that is far from every prototype.
    """
    if temperature < 0.02:
        raise ValueError(f"Sinkhorn's temperature is {temperature:g}; allowed: 0.02 or more")
    q = torch.exp((scores.to(torch.promote_types(scores.dtype, torch.float32)) - 1) / temperature)  # cosines: at most 1
    count = ranks.total(q.new_full((), len(q)))
    for _ in range(rounds):
        q = q / (ranks.total(q.sum(0)) * q.shape[1]).clamp_min(torch.finfo(q.dtype).tiny)
        q = q / (q.sum(1, keepdim=True) * count).clamp_min(torch.finfo(q.dtype).tiny)
    return q * count


@precise
def across_views(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between each target and each *other* view, the mean over pairs and pictures.

    targets: probabilities [T, B, K], of the first T views; logits: [V, B, K]. Equation 3 of DINO, 2 of SwAV.
    """
    return AcrossViews.apply(full(targets), logits, temperature)


def entropies(p: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row, and of the mean row, as shares of log K: ([], []), from probabilities [B, K].

    The two ways to collapse: the first at 1 is one answer of "anything" to everything, the second at 0 is one
    prototype for all. (DINO, section 5.3.)
    """
    most = math.log(p.shape[-1])
    return torch.special.entr(p).sum(-1).mean() / most, torch.special.entr(p.mean(0)).sum() / most


def on_hidden(targets: Tensor, logits: Tensor, hidden: Tensor, places: Tensor, temperature: float) -> Tensor:
    """Cross-entropy at the hidden patches: the mean of each picture's mean; one that hides none counts as 0.

    targets (probabilities) and logits: [M, K], one for each True of hidden: bool [B, N]; places: [M], where in the flat
    `hidden` these are. Zhou et al., 2022 (iBOT), equation 2, weighted as in ibot/main_ibot.py.
    """
    said = log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    weights = (1 / hidden.sum(1).clamp_min(1))[places // hidden.shape[1]]  # [M]
    return -((targets * said).sum(-1) * weights).sum() / len(hidden)
