import json
from pathlib import Path

import numpy as np
import pytest

from components.connector.cider import cider_d
from components.connector.scoring import (
    blind_answers,
    bootstrap,
    derangement,
    normalized,
    question_kinds,
    vqa_accuracy,
)
from components.data import scenes
from components.data.entries import DESCRIBE
from tests.tolerances import FLOAT64

REFERENCE = json.loads(Path(__file__).with_name("reference_scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A fish.", "fish"),
        (" the  Night sky", "night sky"),
        ("Red!", "red"),
        ("an", ""),
        ("theater", "theater"),
        ("Three", "3"),
    ],
)  # fmt: skip
def test_normalized(text: str, expected: str) -> None:
    assert normalized(text) == expected


def test_blind_answers_are_the_most_common_ones() -> None:
    pairs = [("color?", "red"), ("color?", "blue"), ("color?", "red"), ("big?", "yes"), ("big?", "no")]
    assert blind_answers(pairs) == {"color?": "red", "big?": "no"}


@pytest.mark.parametrize("images", [2, 3, 50])
def test_no_image_is_its_own_replacement(images: int) -> None:
    rows = np.repeat(np.arange(images) * 7, 3)
    for seed in range(20):
        other = derangement(rows, seed)
        assert (other != rows).all()
        assert (np.sort(other) == rows).all()
        assert (other.reshape(-1, 3) == other[::3, None]).all()  # the questions of one image get the same replacement
    with pytest.raises(ValueError, match="two"):
        derangement(np.zeros(5, dtype=np.int64), 0)


def test_bootstrap_draws_images_and_not_questions() -> None:
    r = np.random.default_rng(0)
    per_image = r.normal(1.0, 1.0, 100)
    low, high = bootstrap(per_image, np.arange(100), seed=0)
    assert low < 1.0 < high
    # the interval of a mean of 100; their own deviation and the quantiles of the bootstrap are random
    assert high - low == pytest.approx(2 * 1.96 / 10, rel=0.25)
    again = bootstrap(
        np.repeat(per_image, 9), np.repeat(np.arange(100), 9), seed=0
    )  # repeated values add no information
    assert again == pytest.approx((low, high))
    assert bootstrap(np.zeros(10), np.arange(10), seed=0) == (0.0, 0.0)


@pytest.mark.parametrize("case", REFERENCE["captions"], ids=lambda case: case["name"])
def test_cider_d_is_that_of_pycocoevalcap(case: dict) -> None:
    scores = cider_d(case["captions"], case["references"])
    assert scores == pytest.approx(case["each"], rel=FLOAT64, abs=FLOAT64)
    assert scores.mean() == pytest.approx(case["mean"], rel=FLOAT64, abs=FLOAT64)
    assert (scores.max() == 0) == (len(scores) == 1)  # in one photo all words are in all references


def test_cider_d_ignores_case_and_punctuation_and_needs_references() -> None:
    references = [["three red cars on sand"], ["four fish on grass"]]
    plain = cider_d(["three red cars", "four fish on grass"], references)
    assert (cider_d(["Three, red cars!", "Four fish on grass."], references) == plain).all()
    with pytest.raises(ValueError, match="one has none"):
        cider_d(["a", "b"], [["a"], []])


@pytest.mark.parametrize("case", REFERENCE["answers"], ids=lambda case: f"{len(case['references'])} people")
def test_vqa_accuracy_is_that_of_the_official_code(case: dict) -> None:
    accuracy = vqa_accuracy(case["answer"], case["references"])
    assert accuracy == pytest.approx(case["accuracy"], abs=FLOAT64)  # the official code rounds


@pytest.mark.parametrize(
    ("references", "accuracy"),
    [(["a fish"], 1), (["cat"], 0), (["fish", "Fish."], 1), (["fish", "cat"], 0.5), (["fish", "cat", "fish"], 2 / 3)],
)
def test_vqa_accuracy_of_few_people(references: list[str], accuracy: float) -> None:
    assert vqa_accuracy("fish", references) == pytest.approx(accuracy)


def test_the_kinds_of_questions_about_scenes_are_found_from_their_answers() -> None:
    drawn = [scenes.draw(0, index) for index in range(200)]
    pairs = [pair for scene in drawn for pair in scene.questions]
    pairs += [(DESCRIBE, scene.caption) for scene in drawn]
    kinds = question_kinds(pairs, [question for question, _ in pairs])
    found = sorted({frozenset(_start(q) for q in kinds if kinds[q] == kind) for kind in kinds.values()}, key=sorted)
    assert found == [
        {"Are there", "Do you"},
        {"Describe the"},
        {"How many"},
        {"What are the", "What is the"},
        {"What are these?", "What is in"},
    ]
    assert all(kinds[kind] == kind for kind in kinds.values())


def _start(question: str) -> str:
    words = question.split()
    return " ".join(words[: 3 if words[0] == "What" else 2])


def test_a_question_with_other_answers_or_none_is_a_kind_of_its_own() -> None:
    pairs = [("color?", "red"), ("color?", "blue"), ("color?", "green"), ("shade?", "Red."), ("fruit?", "orange")]
    pairs += [("taste?", "red"), ("taste?", "sweet"), ("taste?", "sour"), (DESCRIBE, "red")]
    kinds = question_kinds(pairs, ["shade?", "color?", "fruit?", "taste?", "new?", DESCRIBE])
    assert kinds == {
        "color?": "color?", "shade?": "color?",
        **{question: question for question in ("fruit?", "taste?", "new?", DESCRIBE)},
    }  # fmt: skip
