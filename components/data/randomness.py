"""Random numbers that depend on their key alone: not on workers, ranks, batches or restarts.

The key is hashed by splitmix64 (Steele, Lea & Flood, OOPSLA 2014, https://doi.org/10.1145/2660193.2660195).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hash_uniform(seed: int, epoch: int, rows: np.ndarray, view: int, count: int) -> Tensor:
    """Returns `count` numbers in [0, 1) for each row: float64 [len(rows), count]."""
    state: np.ndarray | np.uint64 = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in (seed, epoch, view):
            state = _mix(np.uint64(word) + state * np.uint64(GOLDEN))
        per_row = _mix(rows.astype(np.uint64) + state)[:, None]
        bits = _mix(per_row + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def expand_draws(draws: Tensor, count: int) -> Tensor:
    """Returns `count` random numbers from each photo's two `draws` [B, 2]: float32 [B, count], on their device.

    For a method whose number of draws depends on the backbone (a permutation of its patches).
    """
    high, low = (draws.float() * 2**24).long().unbind(1)  # whole: the draws have 24 bits
    return (hash_bits(high << 24 | low, count) >> 40 & 2**24 - 1).float() * 2.0**-24


def hash_bits(seeds: Tensor, count: int) -> Tensor:
    """Returns `count` times 64 random bits from each of the `seeds`, int64 [B]: int64 [B, count], on their device."""
    golden, first, second = (word - 2**64 for word in (GOLDEN, FIRST, SECOND))
    z = seeds[:, None] + golden * torch.arange(1, count + 1, device=seeds.device)
    z = (z ^ (z >> 30 & 2**34 - 1)) * first  # int64 wraps around, and its shift is arithmetic
    z = (z ^ (z >> 27 & 2**37 - 1)) * second
    return z ^ (z >> 31 & 2**33 - 1)


def _mix(z: np.ndarray | np.uint64) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return np.asarray(z ^ (z >> np.uint64(31)))
