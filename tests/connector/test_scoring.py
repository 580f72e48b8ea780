import numpy as np
import pytest

from components.connector.scoring import blind_answers, bootstrap, derangement, normalized


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A fish.", "fish"), (" the  Night sky", "night sky"), ("Red!", "red"), ("an", ""), ("theater", "theater")],
)
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
