"""The pictures are what they say they are, the same every time, and nothing but the object tells the class."""

import colorsys
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from components.data.scenes import BACKGROUNDS, CLASSES, COLORS, PLACES, SIZES, Scene, draw, scenes

WHAT, COLOR, PLACE, BACKGROUND, SIZE, YES_NO = range(6)


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return list(scenes(seed=0, count=800))


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
def test_refuses_what_is_no_index(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        draw(seed, index)


def test_classes_are_balanced_and_their_order_is_no_pattern(drawn: list[Scene]) -> None:
    labels = [scene.label for scene in drawn]
    assert set(Counter(labels[:20]).values()) == {2}
    assert len(CLASSES) == 10
    assert set(labels[::10]) == set(CLASSES), "every tenth picture must not be of one class"


@pytest.mark.parametrize(
    ("question", "values"), [(COLOR, COLORS), (PLACE, PLACES), (BACKGROUND, BACKGROUNDS), (SIZE, SIZES)]
)
def test_class_is_independent_of(drawn: list[Scene], question: int, values: dict[str, object]) -> None:
    seen = Counter(zip((scene.label for scene in drawn), answers(drawn, question), strict=True))
    expected = len(drawn) / len(CLASSES) / len(values)
    chi2 = sum((seen[label, value] - expected) ** 2 / expected for label in CLASSES for value in values)
    freedom = len(CLASSES) * len(values) - len(CLASSES)
    assert sum(seen[label, value] for label in CLASSES for value in values) == len(drawn), "an unknown answer"
    assert chi2 < freedom + 3.5 * (2 * freedom) ** 0.5


def test_caption_and_answers_say_the_same(drawn: list[Scene]) -> None:
    for scene in drawn:
        color, place, background, size = (scene.questions[question][1] for question in (COLOR, PLACE, BACKGROUND, SIZE))
        assert f"a {size} {color} {scene.label} {BACKGROUNDS[background]}" in scene.caption
        assert PLACES[place][1] in scene.caption
        assert re.fullmatch(rf"an? {scene.label}", scene.questions[WHAT][1])
        asked, answer = scene.questions[YES_NO]
        assert answer == ("yes" if scene.label in asked else "no")
        assert all(question.endswith("?") and " a umbrella" not in question for question, _ in scene.questions)
        assert not any(other in scene.caption for other in CLASSES if other != scene.label)


def test_yes_and_no_are_as_frequent(drawn: list[Scene]) -> None:
    assert 0.45 < answers(drawn, YES_NO).count("yes") / len(drawn) < 0.55


def object_pixels(scene: Scene) -> np.ndarray:
    """The most saturated pixels, bool [64, 64]: backgrounds are muted, so nearly all are the object's."""
    brightest = scene.pixels.max(2).astype(float)
    saturation = (brightest - scene.pixels.min(2)) / (brightest + 20)
    colorful: np.ndarray = saturation >= np.quantile(saturation, 0.93)
    return colorful


def test_the_color_named_is_the_color_seen(drawn: list[Scene]) -> None:
    hues = {name: colorsys.rgb_to_hsv(*(c / 255 for c in rgb))[0] for name, rgb in COLORS.items()}

    def nearest(scene: Scene) -> str:
        red, green, blue = np.median(scene.pixels[object_pixels(scene)], axis=0) / 255
        hue = colorsys.rgb_to_hsv(red, green, blue)[0]
        return min(hues, key=lambda name: abs((hue - hues[name] + 0.5) % 1 - 0.5))

    right = [nearest(scene) == answer for scene, answer in zip(drawn, answers(drawn, COLOR), strict=True)]
    assert np.mean(right) > 0.97


def test_the_place_named_is_the_place_seen(drawn: list[Scene]) -> None:
    right = []
    for scene, place in zip(drawn, answers(drawn, PLACE), strict=True):
        y, x = (np.argwhere(object_pixels(scene)).mean(0) - 31.5).tolist()
        off = {"left": -x, "right": x, "top": -y, "bottom": y, "center": 11 - max(abs(x), abs(y))}
        right.append(off[place] > 0)
    assert np.mean(right) > 0.95


def test_raw_pixels_do_not_give_the_class_away(drawn: list[Scene]) -> None:
    pictures = np.stack([scene.pixels for scene in drawn]).reshape(800, -1).astype(np.float32)
    labels = np.array([scene.label for scene in drawn])
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    nearest = (pictures[600:] @ pictures[:600].T).argmax(1)
    assert 0.08 < (labels[600:] == labels[:600][nearest]).mean() < 0.35
