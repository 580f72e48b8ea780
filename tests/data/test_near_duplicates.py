"""Near-duplicates are found without comparing all pairs, and other photos are not taken for them."""

import io

import numpy as np
import pytest
from PIL import Image

from components.data import near_duplicates
from components.data.near_duplicates import MAX_DISTANCE, MIN_CORRELATION, Signature, candidates, find_pairs, sign
from components.data.scenes import draw
from components.data.splits import connected


def scene(index: int) -> Image.Image:
    return Image.fromarray(draw(3, index).pixels)


def signature(image: Image.Image) -> Signature:
    return sign(image.convert("RGB"), image.convert("L"))


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((44, 44), Image.Resampling.LANCZOS),
        lambda image: image.resize((100, 100), Image.Resampling.BICUBIC),
        recompressed,
        lambda image: image.point(lambda value: round(value * 1.03)),
        lambda image: image.point(lambda value: round(value * 0.97)),
        lambda image: image.crop((1, 1, 63, 63)),
        lambda image: image.crop((0, 1, 63, 64)),
    ],
    ids=["smaller", "larger", "recompressed", "brighter", "darker", "cropped", "cropped at a corner"],
)
def test_a_changed_copy_is_paired_with_its_original_and_with_nothing_else(change):
    scenes = [scene(index) for index in range(30)]
    pairs = find_pairs([signature(image) for image in [*scenes, *map(change, scenes[:10])]])
    right = {(index, 30 + index) for index in range(10)}
    found = {(pair.first, pair.second) for pair in pairs}
    assert len(found & right) >= 9
    assert found <= right
    assert all(MIN_CORRELATION <= pair.correlation <= 1 + 1e-5 for pair in pairs)


def test_every_pair_within_the_distance_is_a_candidate_and_no_other(monkeypatch):
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 400, dtype=np.uint64)
    for row in range(1, 400, 2):  # a neighbor at each distance up to 17, its bits anywhere
        bits = random.permutation(64)[: row // 2 % 18]
        hashes[row] = hashes[row - 1] ^ np.bitwise_or.reduce(
            np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0)
        )
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = {(a, b) for a, b in np.argwhere(distances <= MAX_DISTANCE).tolist() if a < b}
    assert len(expected) >= 12 * 10
    for chunk in (2_000_000, 7):
        monkeypatch.setattr(near_duplicates, "CHUNK", chunk)
        found = {
            pair for chunked in candidates(hashes) for pair in zip(*(rows.tolist() for rows in chunked), strict=True)
        }
        assert found == expected


def test_few_of_all_pairs_are_compared(monkeypatch):
    """A million photos have 5e11 pairs; of evenly spread hashes a 120th is compared."""
    compared = 0
    count_bits = np.bitwise_count

    def counting(values):
        nonlocal compared
        compared += len(values)
        return count_bits(values)

    monkeypatch.setattr(near_duplicates.np, "bitwise_count", counting)
    number = 20_000
    list(candidates(np.random.default_rng(0).integers(0, 2**64, number, dtype=np.uint64)))
    assert 0 < compared < number**2 / 2 / 100


def test_of_many_photos_that_look_alike_the_nearest_are_kept(monkeypatch):
    monkeypatch.setattr(near_duplicates, "CHUNK", 50)
    monkeypatch.setattr(near_duplicates, "LINKS", 3)
    random, pixels = np.random.default_rng(0), draw(3, 0).pixels
    noise = (random.integers(-8, 9, pixels.shape) for _ in range(20))
    alike = [signature(Image.fromarray((pixels + one).clip(0, 255).astype(np.uint8))) for one in noise]
    pairs = find_pairs(alike)
    assert 19 <= len(pairs) <= 2 * 3 * 20 < 20 * 19 / 2
    assert connected((pair.first, pair.second) for pair in pairs) == [list(range(20))]


def test_the_same_picture_in_another_color_is_another():
    image = scene(0)
    red, green, blue = image.split()
    turned = Image.merge("RGB", (red.point(lambda value: value * 0.8), green, blue.point(lambda value: value * 1.2)))
    (pair,) = find_pairs([signature(image), signature(turned), signature(recompressed(image))])
    assert (pair.first, pair.second) == (0, 2)


def test_flat_pictures_resemble_nothing():
    gray = [signature(Image.new("RGB", (64, 64), (level, level, level))) for level in (0, 90, 200)]
    noise = np.random.default_rng(0).normal(20, 1, (5, 64, 64, 3)).astype(np.uint8)
    assert find_pairs([*gray, *(signature(Image.fromarray(one)) for one in noise)]) == []
    assert find_pairs([]) == find_pairs(gray[:1]) == []


def test_the_hash_does_not_depend_on_brightness_or_contrast():
    image = scene(0)
    assert 20 < signature(image).hash.bit_count() < 44
    half = image.point(lambda value: value / 2 + 60)
    assert (signature(image).hash ^ signature(half).hash).bit_count() <= 3  # gray values are rounded
