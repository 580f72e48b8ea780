"""Unit vectors and deviations of features of any scale.

The features of an untrained EfficientNet are about 1e-22. float32 cannot hold their squares, and a floor such as 1e-6
would take them for constants: a linear probe on them would only know the most frequent class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

CONSTANT = 1e-6  # deviation of a dimension that does not vary, relative to its largest entry


def unit_vectors(x: Tensor) -> Tensor:
    """Returns the rows of `x` [N, D] with length 1; rows of zeros stay zero. N may be 0."""
    return normalize(x / _power_of_two(x, 1), dim=1)


def deviation(train: Tensor) -> Tensor:
    """Returns the standard deviation of each dimension of `train` [N, D], never zero: [D]."""
    scale = _power_of_two(train, 0)
    return (scale * (train / scale).std(0, keepdim=True).clamp_min(CONSTANT))[0]


def _power_of_two(x: Tensor, dim: int) -> Tensor:
    """Returns the largest power of two in each row (dim 1) or column (dim 0), 1 if all are zero; it divides exactly."""
    largest = x.abs().amax(dim, keepdim=True)
    _, exponent = torch.frexp(largest)  # largest is less than 2 ** exponent, and at least half of it
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent - 1), 1.0)
