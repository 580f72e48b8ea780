"""Measures what may be wrong with a photo that can be read: blurred, dark, bright, blank, of an odd shape, tiny.

Blur: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy (ICPR 2000), the variance of the Laplacian,
here relative to the variance of the gray values, so that a photo of low contrast is not blurred for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image


class Measures(NamedTuple):
    """Of one photo. All but the last two are taken at the size that training sees.

    sharpness: variance of the Laplacian over that of the gray values. brightest, darkest: 95th and 5th percentile of
    the gray values, 0 to 1. entropy: of the gray values, in bits, 0 to 8. aspect: longer side over the shorter.
    side: shorter side over data.size; below 1 the photo is smaller than those that training is set for.
    """

    sharpness: float
    brightest: float
    darkest: float
    entropy: float
    aspect: float
    side: float


class Limit(NamedTuple):
    """Which measure is compared, and the value that it must not be below (or above)."""

    measure: str
    value: float
    above: bool = False

    def broken(self, measures: Measures) -> bool:
        score: float = getattr(measures, self.measure)
        return score > self.value if self.above else score < self.value


LIMITS: Mapping[str, Limit] = {  # chosen by measuring, see benchmarks/hygiene.md
    "blurred": Limit("sharpness", 0.035),
    "dark": Limit("brightest", 0.25),
    "bright": Limit("darkest", 0.92, above=True),
    "blank": Limit("entropy", 2.0),
    "aspect": Limit("aspect", 3.0, above=True),
    "tiny": Limit("side", 0.5),
}


def measure(gray: Image.Image, width: int, height: int, size: int) -> Measures:
    """Returns the measures of a photo of mode L at its packed size. width, height: before; size: data.size."""
    counts = np.array(gray.histogram(), np.float64)
    shares = counts / counts.sum()
    cumulative = shares.cumsum()
    nonzero = shares[shares > 0]
    return Measures(
        sharpness=_sharpness(np.asarray(gray, np.float32)),
        brightest=float(np.searchsorted(cumulative, 0.95)) / 255,
        darkest=float(np.searchsorted(cumulative, 0.05)) / 255,
        entropy=float(-(nonzero * np.log2(nonzero)).sum()),
        aspect=max(width, height) / min(width, height),
        side=min(width, height) / size,
    )


def issues(measures: Measures) -> dict[str, float]:
    """Returns the kinds of issues of a photo, each with its score. A blank photo is not blurred, dark or bright too."""
    scores = {kind: getattr(measures, limit.measure) for kind, limit in LIMITS.items() if limit.broken(measures)}
    if "blank" in scores:
        scores = {kind: score for kind, score in scores.items() if kind not in ("blurred", "dark", "bright")}
    return scores


def _sharpness(values: np.ndarray) -> float:
    """Returns the variance of the Laplacian over that of the values, float32 [h, w]; 1 where all values are one."""
    if min(values.shape) < 3 or not (variance := _variance(values)):
        return 1.0
    laplacian = -4 * values[1:-1, 1:-1]
    for neighbors in (values[:-2, 1:-1], values[2:, 1:-1], values[1:-1, :-2], values[1:-1, 2:]):
        laplacian += neighbors
    return _variance(laplacian) / variance


def _variance(values: np.ndarray) -> float:
    centered = values.ravel() - values.mean()
    return float(centered @ centered) / centered.size
