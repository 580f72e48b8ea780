"""Photos that find others of their class or caption, beside a naive loop and beside random orders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.functional import normalize

from components.data.entries import DESCRIBE, NAME
from components.data.photos import Photos
from components.evaluation import similar
from components.evaluation.features import center
from components.evaluation.similar import average_precision_at_r, chance_of_map_at_r, scores, similar_photos
from tests.tolerances import FLOAT32, FLOAT64


def grouped(count: int, kinds: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns unit vectors of some kinds, [count, 8], and which others are of the same kind."""
    random = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, kinds, (count,), generator=random)
    centers = torch.randn(kinds, 8, generator=random)
    vectors = normalize(centers[kind] + torch.randn(count, 8, generator=random), dim=1)
    return vectors, (kind[:, None] == kind) & ~torch.eye(count, dtype=torch.bool)


def naive(vectors: torch.Tensor, same: torch.Tensor) -> tuple[dict[int, float], float]:
    """Recall at 1, 5 and 10, and MAP@R, as the paper words them: one query and one rank after the other."""
    recalls: dict[int, list[bool]] = {1: [], 5: [], 10: []}
    average = []
    for query in range(len(vectors)):
        total = int(same[query].sum())
        if not total:
            continue
        others = [other for other in range(len(vectors)) if other != query]
        order = sorted(others, key=lambda other: -float(vectors[query] @ vectors[other]))
        right = [bool(same[query, other]) for other in order]
        for k, hits in recalls.items():
            hits.append(any(right[:k]))
        average.append(sum(sum(right[:i]) / i for i in range(1, total + 1) if right[i - 1]) / total)
    return {k: float(np.mean(hits)) for k, hits in recalls.items()}, float(np.mean(average))


@pytest.mark.parametrize("kinds", [3, 12, 30])  # R above 10, below it, and kinds of one photo
def test_scores_are_those_of_a_loop_over_queries_and_ranks(kinds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "TILE", 7)
    vectors, same = grouped(40, kinds)
    recalls, average = naive(vectors, same)
    results = scores(vectors, same)
    assert {k: results[str(k)]["value"] for k in recalls} == pytest.approx(recalls, abs=FLOAT64)
    assert results["map_at_r"]["value"] == pytest.approx(average, abs=FLOAT64)
    assert results["map_at_r"]["of"] == results["1"]["of"] == int(same.any(1).sum())
    assert results["gallery"] == 40


def test_the_chance_is_the_mean_over_random_orders() -> None:
    _, same = grouped(12, 3, seed=1)
    relevant = same.sum(1)
    relevant = relevant[relevant > 0]
    random, total = np.random.default_rng(0), np.zeros(2)
    rounds = 3000
    for _ in range(rounds):
        hits = torch.stack([torch.from_numpy(random.permutation(11) < int(r)) for r in relevant])
        total += float(average_precision_at_r(hits, relevant).mean()), float(hits[:, :5].any(1).float().mean())
    expected = scores(torch.eye(12), same)
    # each mean is of 3000 times 12 numbers with a deviation of at most 0.5: its own is below 0.003
    assert total[0] / rounds == pytest.approx(expected["map_at_r"]["chance"], abs=0.012)
    assert total[1] / rounds == pytest.approx(expected["5"]["chance"], abs=0.012)
    one = torch.tensor([1])
    assert float(chance_of_map_at_r(one, 11)) == pytest.approx(1 / 11)  # the only right one comes first
    assert float(chance_of_map_at_r(torch.tensor([11]), 11)) == pytest.approx(1)  # all are right


def test_photos_of_a_class_or_with_a_caption_are_found_among_test_photos(prepared: Path, tmp_path: Path) -> None:
    for file in prepared.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    photos = Photos(tmp_path)
    test = photos.rows("test")
    texts = ["A  Door", "a door", "a wall", "a roof"]  # the first two are one caption
    rows = [*test[:4].tolist(), photos.rows("train")[0]]
    (tmp_path / "questions.parquet").unlink(missing_ok=True)
    questions = [DESCRIBE] * 4 + [NAME]
    table = {"row": rows, "question": questions, "answer": [*texts, "a door"]}
    pl.DataFrame(table).write_parquet(tmp_path / "questions.parquet")
    vectors = torch.randn(len(photos), 8, generator=torch.Generator().manual_seed(0))
    results = similar_photos(vectors, photos)
    _, own = center(vectors[photos.rows("train")], vectors[test])
    labels = photos.labels(test)
    expected = scores(own, (labels[:, None] == labels) & ~torch.eye(len(test), dtype=torch.bool))
    assert results["by_class"] == expected
    assert results["by_caption"]["gallery"] == 4
    assert results["by_caption"]["map_at_r"]["of"] == 2
    assert results["by_caption"]["map_at_r"]["chance"] == pytest.approx(1 / 3, abs=FLOAT32)
    vectors[test[0]] = vectors[test[1]]
    assert similar_photos(vectors, photos)["by_caption"]["map_at_r"]["value"] == 1.0
    (tmp_path / "questions.parquet").unlink()
    assert set(similar_photos(vectors, photos)) == {"by_class"}
