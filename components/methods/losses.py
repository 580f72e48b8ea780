"""Losses and statistics that several methods share. A loss of one method is in that method's file."""

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


def without_autocast(loss: Callable[P, R]) -> Callable[P, R]:
    """Decorates a loss to run outside of autocast, which would cast float32 operands of its products to bf16."""

    @wraps(loss)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(x.device.type for x in args if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*args, **kwargs)

    return run


def at_least_float32(x: Tensor) -> Tensor:
    """Returns x in float32, or in its own dtype if that is wider. Half precision is too coarse for a loss."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2_normalize(x: Tensor) -> Tensor:
    """Returns x [..., D] with rows of length 1, in float32 at least."""
    return normalize(at_least_float32(x), dim=-1)


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Returns the mean cosine similarity of the rows of a [B, D] with the same rows of b: []."""
    return (l2_normalize(a) * l2_normalize(b)).sum(-1).mean()


@torch.no_grad()
def feature_std(z: Tensor) -> Tensor:
    """Returns the standard deviation of the normalized rows of z [B, D], times √D: [].

    1 for rows in all directions, 0 for a single direction, which is collapse. Chen & He, 2021, section 4.1 (without the
    √D, which gives all widths the same scale).
    """
    return l2_normalize(z).std(0).mean() * z.shape[1] ** 0.5


@without_autocast
def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Returns the mean over all 2N projections of the cross-entropy of each one's other view among all others: [].

    a, b: [N, D] on each rank. Negatives come from all ranks, with gradient. Chen et al., 2020, equation 1. (SimCLR's
    code adds the means of the two halves, which is twice this.)
    """
    local = l2_normalize(torch.cat([a, b]))
    gathered = ranks.gather(local)
    return NTXent.apply(local, gathered, ranks.rank() * len(local), temperature)


@without_autocast
def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy of each query's key among the negatives, and the accuracy: ([], []).

    q, k: normalized [B, D], k without gradient; negatives: [K, D]. He et al., 2020, equation 1.
    """
    positive = (q * k).sum(-1, keepdim=True)  # [B, 1]
    logits = torch.cat([positive, q @ negatives.T], dim=1) / temperature  # [B, 1 + K]
    target = logits.new_zeros(len(q), dtype=torch.long)
    return cross_entropy(logits, target), logits.detach().argmax(1).eq(0).float().mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Assigns the vectors of all ranks evenly to the prototypes: cosines [B, K] -> probabilities [B, K].

    B may differ from rank to rank, and may be 0. Each round scales the prototypes to equal shares, then the vectors;
    after the last, every row sums to 1. Caron et al., 2020 (SwAV), equation 3; Cuturi, NIPS 2013. Raises ValueError for
    a temperature at which a vector that is far from every prototype underflows in float32.
    """
    if temperature < 0.02:
        raise ValueError(f"Sinkhorn's temperature is {temperature:g}; allowed: 0.02 or more")
    q = torch.exp((at_least_float32(scores) - 1) / temperature)  # cosines: at most 1
    count = ranks.total(q.new_full((), len(q)))
    for _ in range(rounds):
        q = q / (ranks.total(q.sum(0)) * q.shape[1]).clamp_min(torch.finfo(q.dtype).tiny)
        q = q / (q.sum(1, keepdim=True) * count).clamp_min(torch.finfo(q.dtype).tiny)
    return q * count


@without_autocast
def across_views(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Returns the cross-entropy between each target and each *other* view, the mean over pairs and photos: [].

    targets: probabilities [T, B, K] of the first T views; logits: [V, B, K]. Equation 3 of DINO, 2 of SwAV.
    """
    return AcrossViews.apply(at_least_float32(targets), logits, temperature)


def entropies(p: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean entropy of the rows of p and the entropy of their mean, as fractions of log K: ([], []).

    p: probabilities [B, K]. Both kinds of collapse show: the first is 1 for uniform outputs, the second is 0 if one
    prototype wins every photo. (DINO, section 5.3.)
    """
    max_entropy = math.log(p.shape[-1])
    return torch.special.entr(p).sum(-1).mean() / max_entropy, torch.special.entr(p.mean(0)).sum() / max_entropy


def masked_patch_cross_entropy(
    targets: Tensor, logits: Tensor, masked: Tensor, positions: Tensor, temperature: float
) -> Tensor:
    """Returns the cross-entropy at the masked patches, the mean of each photo's mean; without a mask it is 0: [].

    targets (probabilities) and logits: [M, K], a row for each True of masked: bool [B, N]; positions: int64 [M], their
    indices in the flattened `masked`. Zhou et al., 2022 (iBOT), equation 2, weighted as in ibot/main_ibot.py.
    """
    log_probabilities = log_softmax(at_least_float32(logits) / temperature, dim=-1)
    weights = (1 / masked.sum(1).clamp_min(1))[positions // masked.shape[1]]  # [M]
    return -((targets * log_probabilities).sum(-1) * weights).sum() / len(masked)
