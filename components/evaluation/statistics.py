"""A share without its uncertainty is half a number."""

from __future__ import annotations

import math

Z95 = 1.959963984540054


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, JASA 1927). Raises ValueError for an impossible count."""
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} right of {total} is no share")
    share, z2 = right / total, Z95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return middle - half if right else 0.0, middle + half if right < total else 1.0  # exactly so, not but for rounding


def share(right: int, total: int) -> dict[str, float]:
    """What goes into metrics.json for a share: value, low and high (95 %), of."""
    low, high = wilson(right, total)
    return {"value": right / total, "low": low, "high": high, "of": total}
