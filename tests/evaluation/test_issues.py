"""Near-duplicates, doubtful labels and odd photos, found among vectors whose issues are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from components.evaluation import index, issues
from components.evaluation.embeddings import Embeddings
from components.evaluation.index import Index
from components.evaluation.issues import COLUMNS, DOUBTFUL, DUPLICATE, ODD, find_issues, groups
from tests.evaluation.written import clusters, write
from tests.tolerances import FLOAT32

COUNT, KINDS = 600, 6


def labels_of(kind: np.ndarray) -> list[str | None]:
    return [f"kind {number}" for number in kind]


def find(embeddings: Embeddings, duplicate: float = 0.999) -> dict[str, pl.DataFrame]:
    table = find_issues(embeddings, embeddings.nearest, duplicate)
    assert tuple(table.columns) == COLUMNS
    return {kind: table.filter(pl.col("kind") == kind) for kind in (DUPLICATE, DOUBTFUL, ODD)}


def test_links_make_groups() -> None:
    first, second = np.array([5, 9, 7, 3, 8]), np.array([4, 7, 2, 2, 8])
    assert groups(first, second) == {5: 4, 4: 4, 9: 2, 7: 2, 2: 2, 3: 2, 8: 8}


def test_copies_are_found_with_the_photo_that_they_are_copies_of(tmp_path: Path) -> None:
    vectors, _ = clusters(COUNT, KINDS)
    vectors[40] = vectors[7] + 1e-4
    vectors[80:120] = vectors[3]  # more copies than neighbors
    found = find(write(tmp_path, vectors))[DUPLICATE]
    others = dict(zip(found["path"], found["other"], strict=True))
    assert others == {"40.jpg": "7.jpg", **{f"{row}.jpg": "3.jpg" for row in range(80, 120)}}
    assert found["score"].min() > 0.999
    assert found["score"].is_sorted(descending=True)
    assert found.filter(pl.col("path") == "84.jpg")["split"].item() == "test"


@pytest.mark.parametrize("by_index", [False, True])
def test_most_of_ten_exchanged_labels_are_among_the_first_thirty(tmp_path: Path, by_index: bool) -> None:
    """The vectors are not perfect: some photos lie among those of another kind, and are doubtful too."""
    vectors, kind = clusters(COUNT, KINDS, spread=1.0)
    random = np.random.default_rng(1)
    flipped = random.permutation(COUNT)[:10]
    before = find(write(tmp_path / "before", vectors, labels_of(kind)))[DOUBTFUL]
    assert len(before) > 20
    changed = kind.copy()
    changed[flipped] = (kind[flipped] + random.integers(1, KINDS, 10)) % KINDS
    embeddings = write(tmp_path / "after", vectors, labels_of(changed))
    if by_index:
        index.build(embeddings)
        search = Index.read(embeddings)
        assert search
        table = find_issues(embeddings, search.nearest, 0.999).filter(pl.col("kind") == DOUBTFUL)
    else:
        table = find(embeddings)[DOUBTFUL]
    first = table.head(30)
    assert len(set(first["path"]) & {f"{row}.jpg" for row in flipped}) >= 7
    suggested = dict(zip(first["path"], first["other"], strict=True))
    right = [suggested.get(f"{row}.jpg") == f"kind {kind[row]}" for row in flipped]
    assert sum(right) >= 7


def test_doubt_is_the_other_classes_share_of_the_vote_of_labeled_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issues, "NEIGHBORS", 4)
    vectors, kind = clusters(30, 2, spread=1.5)
    labels = [None if row % 3 == 0 else label for row, label in enumerate(labels_of(kind))]
    embeddings = write(tmp_path, vectors, labels)
    found = find(embeddings)[DOUBTFUL]
    doubt = dict(zip(found["path"], found["score"], strict=True))
    units = embeddings.directions(slice(None)).double()
    labeled = [row for row in range(30) if labels[row]]
    expected = {}
    for row in labeled:
        cosines = {other: float(units[row] @ units[other]) for other in labeled if other != row}
        near = sorted(cosines, key=lambda other: -cosines[other])[:4]
        votes = {
            name: sum(math.exp(cosines[n] / 0.07) for n in near if labels[n] == name) for name in ("kind 0", "kind 1")
        }
        if max(votes, key=lambda name: votes[name]) != labels[row]:
            expected[f"{row}.jpg"] = 1 - votes[str(labels[row])] / sum(votes.values())
    assert doubt == pytest.approx(expected, abs=10 * FLOAT32)  # cosines are divided by 0.07
    assert expected


def test_the_photo_that_is_far_from_all_others_is_odd(tmp_path: Path) -> None:
    vectors, _ = clusters(COUNT, KINDS, spread=0.3)
    vectors[11] = 3 + 4 * np.random.default_rng(5).standard_normal(16)
    embeddings = write(tmp_path, vectors)
    found = find(embeddings)[ODD]
    assert found["path"].to_list() == ["11.jpg"]
    others = torch.arange(COUNT) != 11
    near, _ = embeddings.nearest(torch.from_numpy(vectors[11:12]), issues.NEIGHBORS, others)
    assert found["score"].item() == pytest.approx(1 - float(near.mean()), abs=FLOAT32)


def test_one_photo_and_unlabeled_photos_have_no_issues(tmp_path: Path) -> None:
    table = find_issues(write(tmp_path / "one", np.ones((1, 4), np.float32)), None, 0.99)  # type: ignore[arg-type]
    assert table.is_empty()
    assert tuple(table.columns) == COLUMNS
    assert find(write(tmp_path / "unlabeled", clusters(50, 3)[0]))[DOUBTFUL].is_empty()
