"""The first sentences of the page follow from the numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from components.evaluation.statistics import proportion_with_ci
from components.reporting.verdict import backbone_sentence, next_sentence


def results(*, right=160, pixels=60, collapse=None, published=False, epochs=3, scored=True):
    metrics = {"health": {"effective_rank": 30.0, "dimensions": 64}}
    if not scored:
        metrics["not_measured"] = {"knn": "the test split has no labeled photo"}
    else:
        metrics |= {
            "majority": {"top1": proportion_with_ci(20, 200)},
            "pixels": {"knn": proportion_with_ci(pixels, 200)},
            "random": {"knn": proportion_with_ci(30, 200)},
            "backbone": {"knn": proportion_with_ci(right, 200)},
        }
    return SimpleNamespace(
        methods={"moco": metrics},
        best_method=lambda: "moco",
        comparison=lambda kind, one, other: None,
        collapse={"moco": collapse}.get,
        origins={"moco": {}} if published else {},
        configs={"moco": {"epochs": epochs}},
    )


@pytest.mark.parametrize(
    ("of", "known", "following"),
    [
        ({}, "80 % of the test photos by their nearest neighbors, 2.7 times as many", "make app"),
        (
            {"right": 62},
            "cannot show that it is better than the best baseline (raw pixels, no network: 30 %)",
            "published",
        ),
        ({"right": 20}, "fewer than the best baseline", "published"),
        ({"published": True, "epochs": 0}, "2.7 times", "make run PHOTOS"),
        ({"published": True}, "2.7 times", "make app"),
        (
            {"collapse": "collapsed: all photos are alike; try"},
            "moco has collapsed: all photos are alike.",
            "another method",
        ),
        ({"scored": False}, "use 30 of 64 directions. Accuracy was not measured: the test split has", "labels.csv"),
    ],
)
def test_the_verdict_and_the_next_step(of, known, following):
    good, sentence = backbone_sentence(results(**of))
    assert known in sentence
    assert good == ("times" in known or "directions" in known)
    assert following in next_sentence(results(**of))


@pytest.mark.parametrize(("right", "shown", "known"), [(64, True, "1.1 times"), (80, False, "cannot show")])
def test_the_verdict_is_that_of_the_same_photos_where_they_were_compared(right, shown, known):
    pair = SimpleNamespace(first="moco", second="pixels", shown=shown)
    compared = results(right=right)
    compared.comparison = lambda kind, one, other: pair if {one, other} == {"moco", "pixels"} else None
    good, sentence = backbone_sentence(compared)
    assert known in sentence
    assert good == shown


def test_there_is_no_verdict_before_a_backbone_was_measured():
    none = SimpleNamespace(best_method=lambda: None)
    assert backbone_sentence(none) is next_sentence(none) is None
