"""Accuracy with a few labels a class: it rises with what the features know, and its draws are the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from components.data.photos import Photos
from components.evaluation.few_labels import DRAWS, few_labels


def test_features_that_are_the_class_need_one_label(photos: Photos) -> None:
    labels = photos.labels(np.arange(len(photos)))
    scores = few_labels(torch.eye(2)[labels] + 0.01 * torch.randn(len(photos), 2), photos)
    assert list(scores) == ["1", "5", "10"]
    for by_kind in scores.values():
        for kind in ("knn", "linear"):
            assert by_kind[kind] == {"mean": 1.0, "lowest": 1.0, "highest": 1.0, "draws": DRAWS}


def test_noise_gives_chance_and_a_range_around_the_mean(photos: Photos) -> None:
    vectors = torch.randn(len(photos), 4, generator=torch.Generator().manual_seed(0))
    scores = few_labels(vectors, photos, (1, 5))
    assert scores == few_labels(vectors, photos, (1, 5))
    for by_kind in scores.values():
        assert by_kind["knn"]["lowest"] < by_kind["knn"]["mean"] < by_kind["knn"]["highest"]
        assert by_kind["knn"]["mean"] == pytest.approx(0.5, abs=0.25)


def test_only_the_photos_of_a_draw_are_seen(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.evaluation import knn

    sizes: list[list[int]] = []

    def classify(queries: Any, bank: Any, labels: Any, k: int) -> Any:
        sizes.append(labels.bincount().tolist())
        return labels[:1].expand(len(queries))

    monkeypatch.setattr(knn, "classify", classify)
    few_labels(torch.randn(len(photos), 3), photos, (1, 5))
    assert sizes == [[1, 1]] * DRAWS + [[5, 5]] * DRAWS


def test_numbers_of_labels_that_no_class_has_are_left_out(photos: Photos) -> None:
    most = int(photos.labels(photos.rows("train", labeled=True)).bincount().max())
    vectors = torch.randn(len(photos), 3)
    assert list(few_labels(vectors, photos, (1, most - 1, most))) == ["1", str(most - 1), str(most)]
    assert list(few_labels(vectors, photos, (1, most, most + 1))) == ["1", str(most)]
