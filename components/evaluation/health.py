"""A backbone without labels can still be seen to be ill: collapsed features do not spread.

Garrido et al., RankMe, ICML 2023. https://arxiv.org/abs/2210.02885
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalized singular values of `features` [N, D]: 1 (collapsed) to min(N, D)."""
    share = torch.linalg.svdvals(features.double())
    share = share / share.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def spread(features: Tensor) -> float:
    """Mean deviation of the unit vectors' entries, times sqrt(D): 0 (collapsed) to about 1 (SimSiam, section 4.1)."""
    return float(normalize(features, dim=1).std(0).mean() * features.shape[1] ** 0.5)
