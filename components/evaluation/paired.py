"""Compares backbones on the same test photos: by how much one is above another, and whether this data can show it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from components.evaluation.statistics import Z95

LEVEL = 0.05  # of the p-values, over all pairs
NO_DIFFERENCE = "no difference that this data can show"


class Right(NamedTuple):
    """Which photos each seed gets right, bool [S, N]: the same N for all that are compared, in the same order."""

    name: str
    photos: Tensor


@dataclass(frozen=True)
class Comparison:
    """How much more often `first` is right than `second`, on the same photos: a fraction of them, 0 or above.

    low, high: the 95 % interval of this pair alone. p: of the hypothesis that there is no difference; p_adjusted: for
    the number of pairs that are compared. seeds: of each of the two.
    """

    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    p_adjusted: float
    photos: int
    seeds: tuple[int, int]

    @property
    def shown(self) -> bool:
        """True if chance does not explain the difference."""
        return self.low > 0 and self.p_adjusted < LEVEL

    def words(self) -> str:
        value, low, high = (100 * x for x in (self.value, self.low, self.high))
        if self.shown:
            return f"{self.first} above {self.second} by {value:.1f} points ({low:.1f} to {high:.1f})"
        return f"{self.first} and {self.second}: {NO_DIFFERENCE} ({value:+.1f}, {low:.1f} to {high:.1f}{self.why()})"

    def why(self) -> str:
        """Returns the adjusted p-value as words, where it alone says that chance may explain the difference."""
        return f"; p {self.p_adjusted:.2f} among all pairs" if self.low > 0 and not self.shown else ""


def compare_pairs(pairs: Iterable[tuple[Right, Right]]) -> list[Comparison]:
    """Returns a comparison of each pair, with p-values adjusted for all of them.

    With one seed each the p-value is that of McNemar's exact test, otherwise that of `difference_over_seeds`.
    """
    ordered = [sorted(pair, key=lambda correct: -float(correct.photos.double().mean())) for pair in pairs]
    differences = []
    for first, second in ordered:
        difference = difference_over_seeds(first.photos, second.photos)
        if len(first.photos) == len(second.photos) == 1:
            difference["p"] = mcnemar(first.photos[0], second.photos[0])
        differences.append(difference)
    p_values = holm([result["p"] for result in differences])
    return [
        Comparison(
            first.name, second.name, **result, p_adjusted=p, photos=first.photos.shape[1],
            seeds=(len(first.photos), len(second.photos)),
        )
        for (first, second), result, p in zip(ordered, differences, p_values, strict=True)
    ]  # fmt: skip


def mcnemar(first: Tensor, second: Tensor) -> float:
    """Returns the p-value of McNemar's exact test: the photos that only one of the two gets right, against a coin.

    first, second: bool [N]. McNemar, Psychometrika 1947; for classifiers Dietterich, Neural Computation 1998.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differ = only_first + only_second
    return float(stats.binomtest(only_first, differ).pvalue) if differ else 1.0


def difference_over_seeds(first: Tensor, second: Tensor) -> dict[str, float]:
    """Returns the difference of two mean proportions over seeds on the same photos: value, low, high and p.

    first, second: bool [S, N], S of each its own. With one seed each, the interval is that of `paired_difference`.

    The variance is that of the photos' mean differences, and of the means over the seeds of both: two sources that
    Bouthillier et al. name (Accounting for Variance in Machine Learning Benchmarks, MLSys 2021). The interval is
    Student's t with the degrees of freedom of Welch and Satterthwaite (Satterthwaite, Biometrics Bulletin 1946). What a
    seed changes at single photos is in both parts, so that the interval errs to the wide side.
    """
    gains = first.double().mean(0) - second.double().mean(0)
    total = len(gains) + 2  # half a photo for each of the four cells, as there
    difference = float(gains.sum()) / total
    variance = (float(gains.square().sum()) + 1 - float(gains.sum()) ** 2 / total) / total**2
    spread = 0.0
    for correct in (first, second):
        if len(correct) > 1:
            of_mean = float(correct.double().mean(1).var()) / len(correct)
            variance += of_mean
            spread += of_mean**2 / (len(correct) - 1)
    freedom = variance**2 / spread if spread else math.inf
    half = math.sqrt(variance) * (float(stats.t.ppf(0.975, freedom)) if spread else Z95)
    p = 2 * float(stats.t.sf(abs(difference) / math.sqrt(variance), freedom))
    return {"value": float(gains.mean()), "low": difference - half, "high": difference + half, "p": p}


def holm(p_values: list[float]) -> list[float]:
    """Returns p-values adjusted for their number, in the same order (Holm, Scandinavian Journal of Statistics 1979)."""
    p, order = np.array(p_values), np.argsort(p_values)
    adjusted_p = np.empty(len(p))
    adjusted_p[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return list(adjusted_p.tolist())
