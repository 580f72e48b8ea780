"""The calibration error and the temperature are what their definitions, written as loops, say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from components.evaluation.calibration import HIGHEST, LOWEST, calibration, calibration_error, fit_temperature
from tests.tolerances import FLOAT64


def naive_error(logits: Tensor, labels: Tensor, bins: int) -> float:
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        confidence = max(math.exp(value) / total for value in row)
        for number in range(bins):
            if number / bins < confidence <= (number + 1) / bins:
                inside[number].append((confidence, row.index(max(row)) == label))
    error = 0.0
    for one in inside:
        if one:
            accuracy = sum(right for _, right in one) / len(one)
            confidence = sum(value for value, _ in one) / len(one)
            error += len(one) / len(labels) * abs(accuracy - confidence)
    return error


def drawn(count: int, factor: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits `factor` times those by whose probabilities the labels were drawn."""
    random = np.random.default_rng(seed)
    true = random.normal(0, 2, (count, 5))
    shares = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = np.array([random.choice(5, p=row) for row in shares])
    return torch.from_numpy(factor * true).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_error_is_that_of_a_loop(bins: int, factor: float) -> None:
    logits, labels = drawn(300, factor)
    assert calibration_error(logits, labels, bins) == pytest.approx(naive_error(logits, labels, bins), abs=FLOAT64)


def test_the_error_of_certain_answers() -> None:
    """Certain and right: no error; certain and wrong: 1; certain and right in three of four: a quarter."""
    logits = 1000 * torch.eye(2)[[0, 1, 0, 1]]
    for labels, error in (([0, 1, 0, 1], 0.0), ([1, 0, 1, 0], 1.0), ([0, 1, 0, 0], 0.25)):
        assert calibration_error(logits, torch.tensor(labels)) == pytest.approx(error)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_and_lowers_the_error(factor: float) -> None:
    logits, labels = drawn(4000, factor)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(factor, rel=0.08)  # 4,000 labels are a sample
    grid = torch.linspace(0.9, 1.1, 201) * temperature
    losses = torch.stack([cross_entropy(logits.double() / value, labels) for value in grid])
    assert float(grid[losses.argmin()]) == pytest.approx(temperature, rel=2e-3)
    other, other_labels = drawn(4000, factor, seed=1)
    scores = calibration(other, other_labels, temperature)
    assert scores["ece_after"] < 0.03
    assert scores["cross_entropy_after"] <= scores["cross_entropy_before"] + 1e-3
    if factor != 1:
        assert scores["ece_before"] > 2 * scores["ece_after"]


def test_the_temperature_has_bounds() -> None:
    """Where val has no mistake the best temperature would be 0, where it has nothing else it would be infinite."""
    logits = torch.eye(3)[[0, 1, 2, 0]]
    assert fit_temperature(logits, torch.tensor([0, 1, 2, 0])) == pytest.approx(LOWEST)
    assert fit_temperature(logits, torch.tensor([1, 2, 0, 1])) == pytest.approx(HIGHEST)


def shown(count: int, factor: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """As `drawn`, of yes or no for each of three classes, the first rare."""
    random = np.random.default_rng(seed)
    true = random.normal([-3, 0, 0.5], 1.5, (count, 3))
    labels = random.random((count, 3)) < 1 / (1 + np.exp(-true))
    return torch.from_numpy(factor * true).float(), torch.from_numpy(labels)


def test_the_error_of_several_labels_is_that_of_a_loop() -> None:
    logits, labels = shown(200, 2.0)
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for value, is_shown in zip(logits.double().flatten().tolist(), labels.flatten().tolist(), strict=True):
        share = 1 / (1 + math.exp(-value))
        inside[max(0, math.ceil(share * 15) - 1)].append((share, is_shown))
    gaps = [abs(sum(is_shown - share for share, is_shown in one)) for one in inside]
    assert calibration_error(logits, labels) == pytest.approx(sum(gaps) / labels.numel(), abs=FLOAT64)
    certain = 1000 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert calibration_error(certain, certain > 0) == 0
    assert calibration_error(certain, certain < 0) == 1


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_of_several_labels_undoes_a_factor(factor: float) -> None:
    logits, labels = shown(3000, factor)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(factor, rel=0.08)  # 9,000 answers are a sample
    grid = torch.linspace(0.9, 1.1, 201) * temperature
    expected = labels.double()
    losses = torch.stack([binary_cross_entropy_with_logits(logits.double() / value, expected) for value in grid])
    assert float(grid[losses.argmin()]) == pytest.approx(temperature, rel=2e-3)
    other, other_labels = shown(3000, factor, seed=1)
    scores = calibration(other, other_labels, temperature)
    assert scores["ece_after"] < 0.03
    after = float(binary_cross_entropy_with_logits(other / temperature, other_labels.float()))
    assert scores["cross_entropy_after"] == pytest.approx(after)
    if factor != 1:
        assert scores["ece_before"] > 2 * scores["ece_after"]
