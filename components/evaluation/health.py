"""Collapse of the features, measured without labels: collapsed features have a low rank and a small deviation.

Garrido et al., RankMe, ICML 2023. https://arxiv.org/abs/2210.02885
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from components.evaluation.scale import unit_vectors

COLLAPSED = 3.0  # effective rank, below which all photos have nearly the same features, of at least
ENOUGH = 32  # photos, for the rank is at most their number
ONE_PROTOTYPE, UNIFORM = 0.01, 0.999  # of prototype_usage at most, of entropy at least: targets of a method's teacher


def effective_rank(features: Tensor) -> float:
    """Returns the exponential of the entropy of the normalized singular values of `features` [N, D].

    From 1 (collapsed) to min(N, D). NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return math.nan
    singular_values = torch.linalg.svdvals(features.double())
    if not singular_values.any():
        return 1.0
    p = singular_values / singular_values.sum() + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def feature_std(features: Tensor) -> float:
    """Returns the mean deviation of the unit vectors' entries times sqrt(D), for `features` [N, D].

    From 0 (collapsed) to about 1 (SimSiam, section 4.1).
    """
    return float(unit_vectors(features).std(0).mean() * features.shape[1] ** 0.5)


def verdict(rank: float | None, target_stats: Mapping[str, float]) -> str | None:
    """Returns how a run has collapsed and what to try, as one sentence; None if it has not.

    rank: the effective rank of its features, None if it is not known; target_stats: what the method logs about its
    targets.
    """
    if rank is not None and rank < COLLAPSED:
        observation = f"all photos have nearly the same features (effective rank {rank:.1f})"
        return f"collapsed: {observation}; try a lower learning rate, a longer warm-up, or another method"
    if target_stats.get("prototype_usage", 1.0) < ONE_PROTOTYPE:
        return "collapsed: one prototype wins every photo; try targets: sinkhorn, or a lower center_momentum"
    if target_stats.get("entropy", 0.0) > UNIFORM:
        return "collapsed: the targets of all photos are uniform; try sharper ones, by a lower teacher_temperature"
    return None
