"""How good features are, measured without labels: on two crops of each photo, or by which photos are neighbors.

Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere,
ICML 2020. https://arxiv.org/abs/2005.10242
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pdist

from components.evaluation import knn
from components.evaluation.features import center
from components.evaluation.scale import unit_vectors


def alignment(first: Tensor, second: Tensor) -> float:
    """Returns the mean squared distance of the unit vectors of two crops of each photo, both [N, D].

    From 0 (the crops have the same features, as those of all photos have after a collapse) to 4. Lower is better.
    """
    return float((unit_vectors(first) - unit_vectors(second)).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """Returns the logarithm of the mean over all pairs of exp(-2 d²), d the distance of unit vectors: of [N, D].

    From 0 (all photos have the same features) down to about -4 (spread evenly over the sphere). Lower is better.
    """
    return float(pdist(unit_vectors(features)).square().mul(-2).exp().mean().log())


def own_crop_share(first: Tensor, second: Tensor) -> float:
    """Returns the share of photos whose first crop is more similar to their second than to any other photo's.

    first, second: [N, D]; similarity is the cosine after each one's mean is subtracted.
    """
    (first,), (second,) = center(first), center(second)
    return float(((first @ second.T).argmax(1) == torch.arange(len(first))).float().mean())


def nearest_others(features: Tensor, k: int) -> Tensor:
    """Returns for each row of [N, D] the numbers of its k nearest other rows, or of all if there are fewer: [N, k]."""
    (bank,) = center(features)
    _, indices = knn.others(torch.arange(len(bank)), *knn.nearest(bank, bank, min(k + 1, len(bank))))
    return indices


def shared_neighbors(neighbors: Tensor, other_neighbors: Tensor) -> float:
    """Returns the mean share of neighbors that two kinds of features agree on: row numbers of both, [N, K] each.

    By chance about K / N.
    """
    return float((neighbors[:, :, None] == other_neighbors[:, None, :]).any(2).float().mean())
