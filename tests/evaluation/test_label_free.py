"""Measures without labels, against loops and scipy."""

import math

import pytest
import torch
from scipy.spatial import KDTree

from components.evaluation.label_free import alignment, nearest_others, own_crop_share, shared_neighbors, uniformity


@pytest.fixture
def crops():
    generator = torch.Generator().manual_seed(0)
    photos = torch.randn(40, 6, generator=generator).double()
    return [photos + 0.4 * torch.randn(40, 6, generator=generator) + 0.3 for _ in range(2)]


def unit(x):
    length = math.sqrt(sum(value * value for value in x))
    return [value / length for value in x]


def squared_distance(x, y):
    return sum((a - b) ** 2 for a, b in zip(unit(x), unit(y), strict=True))


def test_alignment_and_uniformity_equal_their_definitions(crops):
    first, second = (x.tolist() for x in crops)
    expected = [squared_distance(x, y) for x, y in zip(first, second, strict=True)]
    assert alignment(*crops) == pytest.approx(sum(expected) / 40, abs=1e-6)
    kernel = [math.exp(-2 * squared_distance(first[i], first[j])) for i in range(40) for j in range(i)]
    assert uniformity(crops[0]) == pytest.approx(math.log(sum(kernel) / len(kernel)), abs=1e-6)


def test_both_show_a_collapse_and_evenly_spread_features():
    collapsed = 1 + 1e-4 * torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    spread = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    assert alignment(collapsed, collapsed.roll(1, 0)) == pytest.approx(0, abs=1e-6)
    assert uniformity(collapsed) == pytest.approx(0, abs=1e-6)
    assert uniformity(spread) < -3.5
    assert alignment(spread, -spread) == pytest.approx(4, abs=1e-5)


def test_photos_find_their_own_crop_as_in_a_loop(crops):
    first, second = ((x - x.mean(0)).tolist() for x in crops)
    found = 0
    for index, x in enumerate(first):
        similarity = [sum(a * b for a, b in zip(unit(x), unit(y), strict=True)) for y in second]
        found += similarity.index(max(similarity)) == index
    assert 0.2 < found / 40 < 1
    assert own_crop_share(*crops) == pytest.approx(found / 40)
    assert own_crop_share(crops[0], crops[0]) == 1


def test_neighbors_equal_those_of_scipy(crops):
    vectors = torch.nn.functional.normalize(crops[0] - crops[0].mean(0), dim=1)
    expected = KDTree(vectors).query(vectors, 7)[1][:, 1:]  # the first is the row itself
    actual = nearest_others(crops[0], 6)
    assert [set(row) for row in actual.tolist()] == [set(row) for row in expected.tolist()]
    assert nearest_others(crops[0][:4], 6).shape == (4, 3)


def test_shared_neighbors_equal_the_overlap_of_sets(crops):
    first, second = (nearest_others(x, 5) for x in crops)
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert 0.1 < sum(shared) / 40 < 0.9
    assert shared_neighbors(first, second) == pytest.approx(sum(shared) / 40)
    assert shared_neighbors(first, first.flip(1)) == 1
