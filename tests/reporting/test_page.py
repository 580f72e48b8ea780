"""The page from made-up numbers: complete, self-contained, and honest where something is missing."""

import copy
import re

import pytest

from components.evaluation.statistics import share
from components.reporting.figures import picture
from components.reporting.findings import Findings, gather, said, summary
from components.reporting.page import render

SCORE = {"knn": {**share(40, 50), "k": 20}, "linear": {**share(45, 50), "penalty": 0.01}}
LOW = {"knn": share(10, 50), "linear": share(12, 50)}


@pytest.fixture
def findings():
    metrics = {
        "majority": {"top1": share(5, 50)},
        "pixels": LOW,
        "random": LOW,
        "backbone": SCORE,
        "health": {"effective_rank": 31.4, "spread": 0.9, "dimensions": 64},
        "blocks": [LOW, SCORE],
    }
    worse = {**copy.deepcopy(metrics), "backbone": LOW}
    log = [{"step": step, "loss": 5 / step} for step in range(1, 20)]
    return Findings(
        config={"data": {"source": "<my> photos"}},
        validation={
            "offered": 102, "used": 96, "rejected": {"broken": 6}, "splits": {"train": 70, "test": 26},
            "classes": {"red": {"train": 35, "test": 13}, "green": {"train": 35, "test": 13}}, "unlabeled": 0,
            "captioned": 0, "converted": {"converted from P": 2}, "width": {"min": 1, "median": 2, "max": 3},
            "height": {"min": 1, "median": 2, "max": 3}, "notes": ["a note"], "warnings": ["a warning"],
        },
        rejected=[{"path": "a.jpg", "kind": "broken", "why": "cannot be decoded: truncated"}] * 6,
        methods={"simclr": worse, "moco": metrics},
        logs={"simclr": log, "moco": log},
        configs={"simclr": {"epochs": 2, "batch_size": 16}, "moco": {"epochs": 4, "batch_size": 16}},
        adapter={
            "accuracy": share(44, 50), "majority": share(5, 50), "classes": ["a", "b"], "confusion": [[3, 1], [0, 4]],
        },
        connector={},
        answering={
            "exact_match": share(30, 50), "blind": share(10, 50), "gap": {"value": 0.8, "low": 0.5, "high": 1.1},
        },
        answers=[
            {"row": 3, "question": "What?", "expected": "a wall", "answer": "a door", "correct": False},
            {"row": 3, "question": "Color?", "expected": "red", "answer": "red", "correct": True},
        ],
    )  # fmt: skip


def page(findings, photos, **changes):
    near = {str(row): photos.rows("train")[:5].tolist() for row in photos.rows("test").tolist()}
    return render(Findings(**{**vars(findings), **changes}), photos, near, 4)


def test_everything_is_on_one_page_that_needs_nothing_else(findings, photos):
    html = page(findings, photos)
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", html)  # figures refer to their own parts only
    assert "@import" not in html
    assert "url(http" not in html
    for text in (
        "&lt;my&gt; photos",
        "majority",
        "raw pixels",
        "80.0 %",
        "a door",
        "a wall",
        "cannot be decoded",
        "a warning",
    ):
        assert text in html
    assert html.count("<figure") == 4 * 6
    assert "features of <b>moco</b>" in html


def test_scores_after_every_block_are_a_line_of_their_method(findings, photos):
    html = page(findings, photos)
    assert html.count("after each block: 20 · 80</span>") == html.count("after each block: 24 · 90</span>") == 2


def test_the_best_method_has_the_best_neighbors(findings):
    assert findings.best() == "moco"


def test_the_table_has_every_baseline_once_and_every_method(findings):
    assert [row["name"] for row in findings.table()] == ["majority", "pixels", "random", "simclr", "moco"]
    assert findings.table()[-1]["words"] == "4 epochs, 304 pictures seen"


def test_what_learned_nothing_is_named(findings, photos):
    assert findings.unlearned() == ["simclr"]  # its interval meets the untrained one's
    methods = copy.deepcopy(findings.methods)
    methods["moco"]["backbone"] = methods["moco"]["random"]
    changed = page(findings, photos, methods=methods)
    assert "moco is not clearly better than the same backbone untrained" in changed
    assert "moco is not clearly better" not in page(findings, photos)


def test_a_baseline_that_differs_is_told_for_each(findings):
    methods = copy.deepcopy(findings.methods)
    methods["moco"]["random"] = SCORE
    names = [row["name"] for row in Findings(**{**vars(findings), "methods": methods}).table()]
    assert names == ["majority", "pixels", "random as in simclr", "random as in moco", "simclr", "moco"]


def test_one_picture_cannot_be_exchanged(findings, photos):
    answering = {key: value for key, value in findings.answering.items() if key != "gap"}
    assert "nats" not in summary(Findings(**{**vars(findings), "answering": answering}))
    assert "nats" not in page(findings, photos, answering=answering)


def test_what_was_not_measured_is_said(findings, photos):
    why = {"knn, linear and their baselines": "the pictures have no labels"}
    unscored = {name: {"health": m["health"], "not_measured": why} for name, m in findings.methods.items()}
    html = page(
        findings,
        photos,
        methods=unscored,
        adapter={"skipped": "no classifier"},
        answering={"skipped": "no questions"},
        answers=[],
    )
    for text in ("Not measured: the pictures have no labels", "no classifier", "no questions"):
        assert text in html
    assert "majority" not in html
    lines = summary(Findings(**{**vars(findings), "methods": unscored, "adapter": {"skipped": "no classifier"}}))
    assert "| moco | – | – | 31 of 64 |" in lines


def test_the_summary_has_the_numbers_of_the_page(findings):
    text = summary(findings)
    assert "| moco | 80.0 % (67.0 to 88.8) | 90.0 % (78.6 to 95.7) | 31 of 64 |" in text
    assert "answers: 60.0 % (46.2 to 72.4) right, blind 20.0 %" in text
    assert said(None) == "–"


def test_a_missing_file_names_itself(tmp_path):
    with pytest.raises(ValueError, match=r"prepare/config.json is missing; run its stage first"):
        gather(tmp_path, ["moco"])


def test_a_picture_is_inline(photos):
    assert picture(photos[0]).startswith("data:image/jpeg;base64,")
