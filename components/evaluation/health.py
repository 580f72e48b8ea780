"""Collapse of the features, measured without labels: collapsed features have a low rank and a small deviation.

Garrido et al., RankMe, ICML 2023. https://arxiv.org/abs/2210.02885
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

COLLAPSED = 2.0  # effective rank, below which all photos have nearly the same features, of at least
ENOUGH = 32  # photos, for the rank is at most their number


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
    return float(normalize(features, dim=1).std(0).mean() * features.shape[1] ** 0.5)
