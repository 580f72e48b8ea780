"""Loss and mean average precision of several labels a photo are those of loops over photos and classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from components.data.photos import Photos
from components.evaluation.several_labels import average_precision, label_matrix, labels_loss, mean_average_precision
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


def test_each_photo_shows_the_class_of_its_label(photos: Photos) -> None:
    rows = np.arange(len(photos))
    matrix = label_matrix(photos, rows)
    assert matrix.shape == (len(photos), 2)
    assert [[photos.classes[place] for place in row.nonzero()[:, 0]] for row in matrix] == [
        [photos.label(row)] for row in rows
    ]


def test_without_any_label_there_is_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="no photo has a label"):
        mean_average_precision(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool))


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0, 1.0, 1.0]])
def test_the_loss_is_that_of_a_loop(weights: list[float] | None) -> None:
    logits, labels = drawn(7)
    logits = logits - 3
    total = 0.0
    for row, shown in zip(logits.tolist(), labels.tolist(), strict=True):
        for place, (logit, is_shown) in enumerate(zip(row, shown, strict=True)):
            share = 1 / (1 + math.exp(-logit))
            total -= math.log(share if is_shown else 1 - share) * (weights[place] if weights else 1)
    loss = labels_loss(logits, labels, torch.tensor(weights) if weights else None)
    assert float(loss) == pytest.approx(total / labels.numel(), rel=FLOAT32)
