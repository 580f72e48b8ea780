"""Unit vectors and deviations of features of any scale.

The features of an untrained EfficientNet are about 1e-22. float32 cannot hold their squares, and a floor such as 1e-6
would take them for constants: a linear probe on them would only know the most frequent class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

CONSTANT = 1e-6  # deviation of a dimension that does not vary, as a part of the largest entry


def unit_vectors(x: Tensor) -> Tensor:
    """Returns the rows of `x` [N, D] with length 1; rows of zeros stay zero."""
    return normalize(x / _power_of_two(x), dim=1)


def deviation(train: Tensor) -> Tensor:
    """Returns the standard deviation of each dimension of `train` [N, D], never zero: [D]."""
    scale = _power_of_two(train)
    return scale * (train / scale).std(0).clamp_min(CONSTANT)


def _power_of_two(x: Tensor) -> Tensor:
    """Returns the least power of two above all entries of `x`, by which division is exact; 1 if all are zero."""
    _, exponent = torch.frexp(x.abs().amax())
    return torch.ldexp(torch.ones_like(x[0, 0]), exponent)
