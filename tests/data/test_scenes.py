"""Generated photos match their labels, captions and answers, are always the same, and only objects show the class."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from components.data.scenes import BACKGROUNDS, CLASSES, NUMBERS, Scene, draw

OBJECT, NUMBER, BACKGROUND, YES_NO = range(4)


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [draw(0, index) for index in range(800)]


def answers(drawn: Sequence[Scene], question: int) -> list[str]:
    return [scene.questions[question][1] for scene in drawn]


def test_a_scene_depends_on_seed_and_index_alone(drawn: list[Scene]) -> None:
    for index in (7, 0, 123):
        alone = draw(0, index)
        assert np.array_equal(alone.pixels, drawn[index].pixels)
        assert (alone.label, alone.caption, alone.questions) == (
            drawn[index].label,
            drawn[index].caption,
            drawn[index].questions,
        )
    assert not np.array_equal(draw(1, 7).pixels, drawn[7].pixels)
    assert len({scene.pixels.tobytes() for scene in drawn}) == len(drawn)


def test_shape_and_type(drawn: list[Scene]) -> None:
    assert all(scene.pixels.shape == (64, 64, 3) and scene.pixels.dtype == np.uint8 for scene in drawn)
    assert all(scene.pixels.std() > 10 for scene in drawn)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_a_negative_seed_or_index_is_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        draw(seed, index)


def test_classes_are_balanced_and_in_random_order(drawn: list[Scene]) -> None:
    labels = [scene.label for scene in drawn]
    assert set(Counter(labels[:20]).values()) == {2}
    assert len(CLASSES) == 10
    assert set(labels[::10]) == set(CLASSES), "every tenth picture must not be of one class"


@pytest.mark.parametrize(
    ("question", "values"),
    [(NUMBER, list(NUMBERS.values())), (BACKGROUND, list(BACKGROUNDS))],
    ids=["number", "background"],
)
def test_the_class_is_independent_of_other_answers(drawn: list[Scene], question: int, values: list[str]) -> None:
    seen = Counter(zip((scene.label for scene in drawn), answers(drawn, question), strict=True))
    expected = len(drawn) / len(CLASSES) / len(values)
    chi2 = sum((seen[label, value] - expected) ** 2 / expected for label in CLASSES for value in values)
    degrees_of_freedom = len(CLASSES) * len(values) - len(CLASSES)
    assert sum(seen[label, value] for label in CLASSES for value in values) == len(drawn), "an unknown answer"
    assert chi2 < degrees_of_freedom + 3.5 * (2 * degrees_of_freedom) ** 0.5


def test_caption_and_answers_agree(drawn: list[Scene]) -> None:
    for scene in drawn:
        what, number, background, _ = (answer for _, answer in scene.questions)
        assert scene.caption.removeprefix("a picture of ") == f"{number} {what} {BACKGROUNDS[background]}"
        assert what.startswith(scene.label[:4])
        question, answer = scene.questions[YES_NO]
        assert answer == ("yes" if what in question else "no")
        assert all(question.endswith("?") for question, _ in scene.questions)


def test_yes_and_no_are_equally_frequent(drawn: list[Scene]) -> None:
    assert 0.45 < answers(drawn, YES_NO).count("yes") / len(drawn) < 0.55


def quarters(scene: Scene) -> int:
    """Returns how many quarters of the picture have something colorful in their middle, which backgrounds are not."""
    brightest = scene.pixels.max(2).astype(float)
    saturation = (brightest - scene.pixels.min(2)) / (brightest + 20)
    return sum((saturation[y : y + 24, x : x + 24] > 0.55).sum() > 25 for x in (4, 36) for y in (4, 36))


def test_the_number_in_the_answer_is_the_number_of_objects(drawn: list[Scene]) -> None:
    seen = [
        [quarters(scene) for scene in drawn if scene.questions[NUMBER][1] == number] for number in ("three", "four")
    ]
    assert np.mean(seen[0]) < 3.3
    assert np.mean(seen[1]) > 3.6


def test_the_background_in_the_answer_is_the_one_in_the_picture(drawn: list[Scene]) -> None:
    """On grass, and on no other background, the muted pixels have more green than red."""
    greener = []
    for scene in drawn:
        pixels = scene.pixels.reshape(-1, 3).astype(float)
        muted = pixels[pixels.max(1) - pixels.min(1) < 50]
        greener.append(np.median(muted[:, 1] - muted[:, 0]) > 0)
    grass = [answer == "grass" for answer in answers(drawn, BACKGROUND)]
    assert np.mean(np.array(greener) == np.array(grass)) > 0.97


def test_raw_pixels_do_not_reveal_the_class(drawn: list[Scene]) -> None:
    pictures = np.stack([scene.pixels for scene in drawn]).reshape(800, -1).astype(np.float32)
    labels = np.array([scene.label for scene in drawn])
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    nearest = (pictures[600:] @ pictures[:600].T).argmax(1)
    assert 0.08 < (labels[600:] == labels[:600][nearest]).mean() < 0.4
