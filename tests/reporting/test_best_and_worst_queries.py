"""The best and the worst queries: by a naive count on labels, by cosines without, and on the page."""

import json

import polars as pl
import pytest
import torch

from components.data.photos import Photos
from components.reporting.figures import data_uri
from components.reporting.page import render
from components.reporting.retrieval import PIXELS, retrieval
from components.stages.evaluate import neighbors as find
from tests.reporting.test_page import results  # noqa: F401


@pytest.fixture
def near(photos):
    """Of random features, as evaluate writes it."""
    features = torch.randn(len(photos), 8, generator=torch.Generator().manual_seed(0))
    return json.loads(json.dumps(find(features, photos.rows("train"), photos.rows("test"), 5)))


def counted(photos, near):
    """Row -> how many of its nearest photos have its label, and their mean cosine."""
    return {
        int(row): (
            sum(photos.label(other) == photos.label(int(row)) for other in found["rows"]),
            sum(found["cosines"]) / 5,
        )
        for row, found in near.items()
    }


def image(photos, row):
    return data_uri(photos[row], most=PIXELS)


def test_the_best_have_most_right_photos_and_the_worst_fewest(photos, near):
    found, right = retrieval(photos, near, 6), counted(photos, near)
    assert found.labeled
    assert (found.counted, found.nearest) == (len(right), 5)
    assert found.all_right == sum(count == 5 for count, _ in right.values()) / len(right)
    assert found.none_right == sum(count == 0 for count, _ in right.values()) / len(right)
    for lines, sign in ((found.best, -1), (found.worst, 1)):
        first = {}  # of each class, in order: the first two lines
        for row in sorted(right, key=lambda row: (sign * right[row][0], -right[row][1])):
            first.setdefault(photos.label(row), row)
        assert {line["query"]["image"] for line in lines[:2]} == {image(photos, row) for row in first.values()}
        assert len(lines) == 3
        for line in lines:
            assert [card["right"] for card in line["near"]] == [
                card["label"] == line["query"]["label"] for card in line["near"]
            ]
    best, worst = ([line["query"]["image"] for line in lines] for lines in (found.best, found.worst))
    assert not set(best) & set(worst)


def test_few_queries_are_shown_once(photos, near):
    few = dict(list(near.items())[:3])
    found = retrieval(photos, few, 8)
    assert (len(found.best), len(found.worst)) == (2, 1)
    shown = {line["query"]["image"] for line in [*found.best, *found.worst]}
    assert shown == {image(photos, int(row)) for row in few}
    assert retrieval(photos, {}, 8) is None


def test_without_labels_the_cosines_choose(photos, near, monkeypatch, results):  # noqa: F811
    bare = photos.manifest.with_columns(labels=pl.lit([], dtype=pl.List(pl.String)))
    monkeypatch.setattr(Photos, "manifest", bare)
    found, right = retrieval(photos, near, 4), counted(photos, near)
    order = sorted(right, key=lambda row: -right[row][1])
    assert not found.labeled
    assert [line["query"]["image"] for line in found.best] == [image(photos, row) for row in order[:2]]
    assert [line["query"]["image"] for line in found.worst] == [image(photos, row) for row in order[:-3:-1]]
    assert {card["right"] for line in found.best for card in line["near"]} == {None}
    html = render(results, photos, near, 4)
    assert "Without labels it is not known which neighbors are right" in html
    assert f"mean cosine {right[order[0]][1]:.2f}" in html
    assert "green frame" not in html


def test_the_page_marks_right_and_wrong(photos, near, results):  # noqa: F811
    html = render(results, photos, near, 4)
    part = html[html.index("Most similar photos") : html.index("Photos to look at")]
    found = retrieval(photos, near, 4)
    marks = [card["right"] for line in [*found.best, *found.worst] for card in line["near"]]
    assert part.count('<figure class="yes">') == part.count(">✓ ") == marks.count(True)
    assert part.count('<figure class="no">') == part.count(">✗ ") == marks.count(False)
    assert part.index("The best") < part.index("The worst")
    assert f"have 5 neighbors of their own class, and {100 * found.none_right:.0f}&nbsp;% have none" in part
