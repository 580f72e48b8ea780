"""What is known of generated photos agrees with what is drawn, and stays with its photo."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from components.data import scenes, sources
from components.data.entries import Source
from components.data.photos import Photos
from components.data.scenes import BACKGROUNDS, COLORS, NUMBERS, draw
from components.data.truth import read_truths
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare

COUNT = 60


@pytest.fixture(scope="module")
def drawn():
    return [draw(3, index) for index in range(COUNT)]


def changed(drawn, monkeypatch, colors):
    """Returns which pixels are others, bool [COUNT, 64, 64], if the objects are painted with other colors."""
    monkeypatch.setattr(scenes, "COLORS", colors)
    return np.stack([(draw(3, i).pixels != scene.pixels).any(2) for i, scene in enumerate(drawn)])


def test_other_colors_change_all_objects_and_nothing_else(drawn, monkeypatch):
    masks = np.stack([scene.truth.mask for scene in drawn])
    others = changed(drawn, monkeypatch, {name: tuple(255 - c for c in color) for name, color in COLORS.items()})
    # of its border, fins and branches, an object covers less than half a pixel
    near = ndimage.binary_dilation(masks > 0, np.ones((1, 3, 3)), iterations=3)
    assert not others[~near].any()
    assert others[masks > 0].mean() > 0.7  # eyes, windows and trunks have colors of their own


@pytest.mark.parametrize("name", COLORS)
def test_one_other_color_changes_the_objects_of_this_color(drawn, monkeypatch, name):
    others = changed(drawn, monkeypatch, COLORS | {name: (20, 20, 20)})
    for scene, other in zip(drawn, others, strict=True):
        for number, color in enumerate(scene.truth.colors, 1):
            inside = ndimage.binary_erosion(scene.truth.mask == number, np.ones((3, 3)))
            assert inside.sum() > 20
            share = other[inside].mean()
            assert share > 0.5 if color == name else share < 0.02  # a fin of another object may cover a part of a pixel


def test_the_mask_is_the_object_that_covers_most_of_a_pixel_if_half_is_covered():
    numbers = np.random.default_rng(0).choice(5, (256, 256), p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.uint8)
    mask = scenes._mask(numbers, 4)
    for y in range(64):
        for x in range(64):
            counts = Counter(numbers[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].ravel().tolist())
            ground = counts.pop(0, 0)
            if ground >= 8:
                assert mask[y, x] == 0
            else:
                assert counts[int(mask[y, x])] == max(counts.values())


def test_objects_are_where_and_what_the_truth_says(drawn):
    for scene in drawn:
        truth = scene.truth
        number, ground = (scene.questions[place][1] for place in (1, 2))
        assert (truth.kind, truth.ground, NUMBERS[truth.number]) == (scene.label, ground, number)
        assert truth.ground in BACKGROUNDS
        assert len(truth.quarters) == len(set(truth.quarters)) == truth.number == truth.mask.max()
        centers = ndimage.center_of_mass(truth.mask > 0, truth.mask, range(1, truth.number + 1))
        for (y, x), quarter in zip(centers, truth.quarters, strict=True):
            assert 2 * (y > 31.5) + (x > 31.5) == quarter


def test_what_is_known_stays_with_its_photo(monkeypatch, tmp_path):
    """Photos that are broken, twice there, of another split or reduced change the rows, but no row's mask."""
    entries = sources.read_source("scenes", 40, 5, tmp_path).entries
    entries[3] = replace(entries[3], fetch=lambda: b"no image")
    entries[9] = replace(entries[9], fetch=entries[8].fetch)
    entries[20] = replace(entries[20], split="test")
    monkeypatch.setattr(sources, "read_source", lambda *_: Source(entries))
    config = ResolvedConfig(data=DataConfig(source="scenes", size=32), prepare=PrepareConfig(count=40, seed=5))
    manifest_rows = {}
    for photos in ("scenes", "others"):
        if photos == "others":
            entries[:] = [replace(entry, truth=None) for entry in entries]
        prepare(config, tmp_path, tmp_path)
        manifest_rows[photos] = read_truths(tmp_path), Photos(tmp_path).manifest["path"].to_list()
    truths, paths = manifest_rows["scenes"]
    assert len(truths) == len(paths) == 38
    assert paths[0] == "scenes/00020.png"  # rows are in another order than the pictures
    for truth, path in zip(truths, paths, strict=True):
        expected = draw(5, int(path[7:12])).truth
        assert np.array_equal(truth.mask, expected.mask)
        assert replace(truth, mask=expected.mask) == replace(expected, mask=expected.mask)
    assert manifest_rows["others"][0] is None
