"""Proportions with their confidence intervals."""

from __future__ import annotations

import math

from torch import Tensor

Z95 = 1.959963984540054


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Wilson, JASA 1927). Raises ValueError for an impossible count."""
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is not a proportion; allowed: 0 to total, of at least 1")
    p, z2 = correct / total, Z95**2
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    # at 0 and 1 the formula gives exactly 0 and 1, but for rounding
    return middle - half if correct else 0.0, middle + half if correct < total else 1.0


def paired_difference(first: Tensor, second: Tensor) -> dict[str, float]:
    """Returns the difference of two proportions on the same photos, with its 95 % interval, as proportion_with_ci does.

    first, second: bool [N], the same photos in the same order. Agresti and Min, Statistics in Medicine 2005, section 3:
    for the interval, half a photo is added to each of the four cells, so that it is not empty where all agree.
    """
    total = len(first) + 2
    only_first, only_second = (float((a & ~b).sum()) + 0.5 for a, b in ((first, second), (second, first)))
    difference = (only_first - only_second) / total
    deviation = math.sqrt(only_first + only_second - (only_first - only_second) ** 2 / total) / total
    return {
        "value": float(first.float().mean() - second.float().mean()),
        "low": difference - Z95 * deviation,
        "high": difference + Z95 * deviation,
        "of": len(first),
    }


def proportion_with_ci(correct: int, total: int) -> dict[str, float]:
    """Returns how a proportion is written to metrics.json: value, low and high (95 % interval), of (the total)."""
    low, high = wilson(correct, total)
    return {"value": correct / total, "low": low, "high": high, "of": total}
