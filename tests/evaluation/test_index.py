"""Search among vectors, with all of them and by the approximate index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from components.evaluation import index, knn
from components.evaluation.embeddings import NORMS, Embeddings
from components.evaluation.index import RECALL, Index
from tests.evaluation.written import clusters, write
from tests.tolerances import FLOAT32

COUNT = 2000


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    return write(tmp_path_factory.mktemp("embed"), clusters(COUNT, 50)[0])


@pytest.fixture(scope="module")
def built(embeddings: Embeddings) -> Index:
    index.build(embeddings)
    read = Index.read(embeddings)
    assert read
    return read


def naive(embeddings: Embeddings, queries: torch.Tensor) -> torch.Tensor:
    """Returns the cosines of the centered vectors: float64 [Q, N]."""
    center = embeddings.center.double()
    units = normalize(torch.from_numpy(np.array(embeddings.vectors)).double() - center, dim=1)
    return normalize(queries.double() - center, dim=1) @ units.T


@pytest.mark.parametrize(("rows", "columns", "k"), [(3, 5000, 10), (2, 700, 7), (4, 130, 10), (3, 6, 10), (2, 64, 1)])
def test_the_largest_are_found_without_sorting_all(rows: int, columns: int, k: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    x[0, -1] = 9.0  # in the rest that is no whole group
    values, places = knn.largest(x, k)
    expected = x.topk(min(k, columns))
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)


def test_the_nearest_are_those_by_cosine_of_centered_vectors(
    embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "BANK", 700)
    monkeypatch.setattr(knn, "TILE", 3)
    queries = torch.from_numpy(np.array(embeddings.vectors[:8])) + 0.3
    among = torch.arange(COUNT) % 3 == 0
    for allowed in (None, among):
        expected = naive(embeddings, queries)
        if allowed is not None:
            expected[:, ~allowed] = -torch.inf
        cosines, rows = embeddings.nearest(queries, 5, allowed)
        best = expected.topk(5)
        torch.testing.assert_close(cosines.double(), best.values, atol=FLOAT32, rtol=0)
        torch.testing.assert_close(expected.gather(1, rows), best.values, atol=FLOAT32, rtol=0)
    few = torch.arange(COUNT) < 3
    assert sorted(embeddings.nearest(queries[:1], 5, few)[1][0].tolist()) == [0, 1, 2]


def test_a_vector_at_the_center_has_no_direction(tmp_path: Path) -> None:
    same = write(tmp_path, np.full((9, 4), 3.3, np.float32))
    cosines, _ = same.nearest(torch.randn(2, 4), 3)
    assert torch.equal(cosines, torch.zeros(2, 3))
    (tmp_path / NORMS).unlink()
    with pytest.raises(ValueError, match=r"norms.npy is missing; run: dvc repro embed"):
        Embeddings.read(tmp_path)


def test_the_index_finds_most_of_the_nearest_and_says_how_many(embeddings: Embeddings, built: Index) -> None:
    numbers = index.about(embeddings.folder)
    assert RECALL <= numbers["recall"] <= 1
    assert numbers["probes"] < numbers["lists"]  # it does not read everything
    assert f"a search reads {numbers['probes']}, finds {100 * numbers['recall']:.1f} %" in index.describe(numbers)
    queries = torch.from_numpy(clusters(300, 50)[0]) + 0.1
    cosines, rows = built.nearest(queries, 10)
    expected = naive(embeddings, queries)
    found = (rows[:, :, None] == expected.topk(10).indices[:, None]).any(1).float().mean()
    assert found > 0.8  # other queries than those by which the number of lists was chosen
    torch.testing.assert_close(cosines.double(), expected.gather(1, rows), atol=FLOAT32, rtol=0)
    built.faiss_index.nprobe = numbers["lists"]  # with all lists it is exact
    cosines, rows = built.nearest(queries, 10)
    torch.testing.assert_close(cosines.double(), expected.topk(10).values, atol=FLOAT32, rtol=0)
    built.faiss_index.nprobe = numbers["probes"]


def test_the_index_searches_among_some_and_all_where_its_lists_hold_too_few(
    embeddings: Embeddings, built: Index
) -> None:
    queries = torch.from_numpy(np.array(embeddings.vectors[:4]))
    among = torch.zeros(COUNT, dtype=torch.bool)
    among[:: COUNT // 20] = True
    cosines, rows = built.nearest(queries, 15, among)
    assert among[rows].all()
    expected = embeddings.nearest(queries, 15, among)
    torch.testing.assert_close(cosines, expected[0], atol=FLOAT32, rtol=0)
    cosines, rows = built.nearest(queries, 5000)  # more than there are
    assert all(sorted(own) == list(range(COUNT)) for own in rows.tolist())


def test_without_an_index_or_faiss_there_is_none(embeddings: Embeddings, built: Index, tmp_path: Path) -> None:
    assert built
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "installed", lambda: False)
        assert Index.read(embeddings) is None
    assert Index.read(write(tmp_path, clusters(9, 3)[0])) is None
