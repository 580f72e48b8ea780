"""Loss and mean average precision of several labels a photo are those of loops over photos and classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from components.evaluation.several_labels import (
    average_precision,
    labels_loss,
    mean_average_precision,
    precision_difference,
    precision_with_ci,
)
from tests.tolerances import FLOAT32, FLOAT64


def naive_precision(scores: list[float], shown: list[bool]) -> float:
    """The mean over the photos of the class of: how many of those with at least its score are of the class."""
    precisions = []
    for score, is_shown in zip(scores, shown, strict=True):
        if is_shown:
            above = [other for value, other in zip(scores, shown, strict=True) if value >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions) if precisions else math.nan


def drawn(levels: int) -> tuple[Tensor, Tensor]:
    """Scores with at most `levels` different values, and labels; no photo shows the last class."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, (40, 5), generator=generator).float()
    labels = torch.rand(40, 5, generator=generator) < torch.tensor([0.1, 0.3, 0.5, 0.9, 0.0])
    return scores, labels


@pytest.mark.parametrize("levels", [1, 3, 100_000])
def test_average_precision_is_that_of_a_loop(levels: int) -> None:
    scores, labels = drawn(levels)
    expected = [naive_precision(*column) for column in zip(scores.T.tolist(), labels.T.tolist(), strict=True)]
    found = average_precision(scores, labels)
    assert found.tolist() == pytest.approx(expected, abs=FLOAT64, nan_ok=True)
    assert found[-1].isnan()
    assert mean_average_precision(scores, labels) == pytest.approx(sum(expected[:-1]) / 4, abs=FLOAT64)
    order = torch.randperm(40)
    assert torch.allclose(average_precision(scores[order], labels[order])[:-1], found[:-1])


def test_average_precision_of_known_orders() -> None:
    labels = torch.tensor([[1], [0], [1], [0]]).bool()
    for scores, value in (([4, 3, 2, 1], (1 + 2 / 3) / 2), ([4, 2, 3, 1], 1.0), ([1, 4, 2, 3], (1 / 3 + 2 / 4) / 2)):
        assert float(average_precision(torch.tensor(scores)[:, None].float(), labels)) == pytest.approx(value)


def test_without_any_label_there_is_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="no photo has a label"):
        mean_average_precision(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool))


@pytest.mark.parametrize("weights", [None, [[0.5, 2.0, 0.0, 1.0, 1.0], [3.0, 0.25, 1.0, 0.5, 2.0]]])
def test_the_loss_is_that_of_a_loop(weights: list[list[float]] | None) -> None:
    logits, labels = drawn(7)
    logits = logits - 3
    total = 0.0
    for row, shown in zip(logits.tolist(), labels.tolist(), strict=True):
        for place, (logit, is_shown) in enumerate(zip(row, shown, strict=True)):
            share = 1 / (1 + math.exp(-logit))
            total -= math.log(share if is_shown else 1 - share) * (weights[is_shown][place] if weights else 1)
    loss = labels_loss(logits, labels, torch.tensor(weights) if weights else None)
    assert float(loss) == pytest.approx(total / labels.numel(), rel=FLOAT32)


def test_in_a_sample_a_photo_counts_as_often_as_it_was_drawn() -> None:
    scores, labels = drawn(4)
    counts = torch.randint(0, 4, (40, 3), generator=torch.Generator().manual_seed(0)).double()
    found = average_precision(scores, labels, counts)
    for sample, column in zip(counts.T.long(), found.T, strict=True):
        repeated = average_precision(scores.repeat_interleave(sample, 0), labels.repeat_interleave(sample, 0))
        assert column.tolist() == pytest.approx(repeated.tolist(), abs=FLOAT64, nan_ok=True)
    never = torch.where(labels[:, :1], 0.0, 1.0).double()  # no photo of the first class
    assert average_precision(scores, labels, never)[0].isnan().all()


def noisy(noise: float, seed: int, photos: int = 300) -> tuple[Tensor, Tensor]:
    """Scores of three classes that are the labels and noise; each photo shows one class at least."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(photos, 3, generator=generator) < 0.4
    labels[:, 0] |= ~labels.any(1)
    return labels + noise * torch.randn(photos, 3, generator=generator), labels


def test_the_interval_is_as_wide_as_other_photos_make_it() -> None:
    of = precision_with_ci(*noisy(1.0, 0))
    assert of["low"] < of["value"] < of["high"]
    assert of["of"] == 300
    others = torch.tensor([mean_average_precision(*noisy(1.0, seed)) for seed in range(1, 41)])
    # the interval is 4 deviations wide; of 40 draws the deviation is known to 11 % (one sigma), so this is 3 sigma
    assert (of["high"] - of["low"]) / 3.92 == pytest.approx(float(others.std()), rel=0.35)
    assert of == precision_with_ci(*noisy(1.0, 0))


def test_a_difference_is_measured_on_the_same_samples() -> None:
    scores, labels = noisy(1.0, 0)
    worse = scores + 0.7 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    difference = precision_difference(scores, worse, labels)
    first, second = precision_with_ci(scores, labels), precision_with_ci(worse, labels)
    assert difference["value"] == pytest.approx(first["value"] - second["value"])
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert first["low"] < second["high"]  # what each interval by itself would not tell
    same = precision_difference(scores, scores, labels)
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
