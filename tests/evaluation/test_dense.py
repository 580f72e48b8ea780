"""Dense measures, each against a loop or planted features: kinds of places, mean IoU, and boxes."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from components.data.scenes import draw
from components.evaluation.attention import similarity_maps
from components.evaluation.dense import classes_of, majority, mean_iou, pixel_places, segmentation
from components.evaluation.features import place_features
from components.evaluation.localization import are_located, boxes_of, corloc, fixed_box, iou, largest_box
from components.models.backbone import build
from tests.tolerances import FLOAT32, LAYERS_FLOAT32


@pytest.fixture(scope="module")
def truths():
    return [draw(1, index).truth for index in range(60)]


def random_classes(seed, photos=6):
    return torch.randint(0, 4, (photos, 8, 8), generator=torch.Generator().manual_seed(seed))


def test_mean_iou_is_that_of_a_loop_over_classes_and_pixels():
    predicted, expected = random_classes(0), random_classes(1)
    found = mean_iou(predicted, expected)
    values = []
    for number in range(4):
        both = either = 0
        for p, e in zip(predicted.flatten().tolist(), expected.flatten().tolist(), strict=True):
            both += p == e == number
            either += number in (p, e)
        values.append(both / either)
    assert found["value"] == pytest.approx(np.mean(values))
    assert found["low"] < found["value"] < found["high"]
    assert mean_iou(expected, expected)["value"] == 1
    two = expected.clamp(max=1)
    assert mean_iou(two, two)["value"] == 1  # classes that do not occur do not count


def test_a_place_has_the_class_that_covers_half_of_it(truths):
    rows = np.array([5, 9, 2])
    classes = classes_of(rows, truths)
    kinds = sorted({truth.kind for truth in truths})
    places = majority(classes, 8, 8)
    for photo, y, x in product(range(3), range(8), range(8)):
        truth = truths[rows[photo]]
        share = (truth.mask[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] > 0).mean()
        assert places[photo, y, x] == (1 + kinds.index(truth.kind) if share >= 0.5 else 0)
    assert set(places.unique().tolist()) > {0}


def test_features_that_hold_the_class_segment_as_well_as_their_grid_allows(truths):
    rows = [np.arange(40), np.arange(40, 60)]
    noise = torch.Generator().manual_seed(0)
    grids = [one_hot(majority(classes_of(r, truths), 8, 8), 11).float() for r in rows]
    told = [grid + 0.05 * torch.randn(grid.shape, generator=noise) for grid in grids]
    untold = [torch.randn(grid.shape, generator=noise) for grid in grids]
    knowing, blind = segmentation(told, rows, truths, 5), segmentation(untold, rows, truths, 5)
    assert knowing["places"] == [8, 8]
    for kind in ("knn", "linear"):
        assert knowing[kind]["value"] > 0.9 * knowing["best"]["value"] > 0.6
        assert blind[kind]["value"] < 0.15


def test_places_of_pixels_are_squares_of_the_photo(photos):
    rows = np.array([3, 1])
    places, squares = pixel_places(photos, rows), photos.squares(rows, 64).float() / 255
    assert places.shape == (2, 8, 8, 192)
    for photo, y, x in product(range(2), range(8), range(8)):
        square = squares[photo, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        assert torch.equal(places[photo, y, x], square.flatten())


def test_places_are_the_tokens_in_their_order_and_patches_are_seen_alone(photos, tiny):
    torch.manual_seed(0)
    rows, backbone = np.array([0, 4]), build(tiny).eval()
    places = place_features(backbone, photos, rows)  # [2, 2, 2, 16]
    squares = photos.squares(rows, 16)
    with torch.no_grad():
        assert (places.flatten(1, 2) - backbone.tokens(squares)).abs().max() < LAYERS_FLOAT32
        backbone.patches = 8  # of 16 pixels: four patches of one place each
        alone = place_features(backbone, photos, rows)
        for y, x in product(range(2), range(2)):
            token = backbone.tokens(squares[:, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8])[:, 0]
            assert (alone[:, y, x] - token).abs().max() < LAYERS_FLOAT32
    assert (alone - places).abs().max() > 100 * LAYERS_FLOAT32
    maps = similarity_maps(places)
    assert maps.shape == (2, 2, 2)
    assert maps.amax((1, 2)).tolist() == pytest.approx([1, 1])


def box_of(pixels):
    rows, columns = np.nonzero(pixels)
    return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


def test_boxes_are_those_of_the_pixels_of_each_object(truths):
    for truth in truths[:10]:
        expected = [box_of(truth.mask == number) for number in range(1, truth.number + 1)]
        assert boxes_of(truth.mask).tolist() == expected
    assert boxes_of(np.zeros((8, 8), np.uint8)).shape == (0, 4)


def test_iou_counts_pixels():
    random = np.random.default_rng(0)
    corners = np.sort(random.choice(12, (20, 2, 2)), axis=1).astype(float)  # [box, first and last, y and x]
    boxes = corners.reshape(20, 4) + np.array([0, 0, 1, 1])
    pixels = []
    for top, left, bottom, right in boxes.astype(int):
        pixels.append({(y, x) for y in range(top, bottom) for x in range(left, right)})
    expected = [[len(a & b) / len(a | b) for b in pixels[7:]] for a in pixels]
    assert np.abs(iou(boxes, boxes[7:]) - expected).max() < FLOAT32


def test_the_largest_part_is_boxed():
    chosen = np.zeros((10, 10), bool)
    chosen[1:3, 1:9] = chosen[4:8, 4:6] = chosen[8, 6] = True  # 16, 8 and, touching a corner, 1 pixel
    chosen[3, 8] = True
    assert largest_box(chosen).tolist() == [[1, 1, 4, 9]]
    assert largest_box(np.zeros((4, 4), bool)).shape == (0, 4)


@pytest.mark.parametrize("low", [False, True])
def test_planted_objects_are_located(truths, low):
    """A map of one object and some noise finds it, wherever the map is high there or low."""
    random = np.random.default_rng(0)
    boxes = [boxes_of(truth.mask) for truth in truths]
    maps = np.stack([(truth.mask == 1) * 0.6 + 0.4 * random.random(truth.mask.shape) for truth in truths])
    maps = 1 - maps if low else maps
    found = corloc((maps[:30], boxes[:30]), (maps[30:], boxes[30:]))
    assert found["value"] > 0.9
    assert found["low_places"] is low
    expected = 0
    for picture, truth in zip(maps[30:], truths[30:], strict=True):
        seen = (1 - picture if low else picture) >= found["threshold"]
        box = largest_box(seen)
        expected += any(
            iou(box, np.array([box_of(truth.mask == n)], float))[0, 0] >= 0.5 for n in range(1, truth.number + 1)
        )
    assert found["value"] == expected / 30
    assert not are_located(np.zeros((1, 64, 64)), boxes[:1], 0.5, low=False)[0]  # nothing is chosen, so no box is right


def test_the_fixed_box_is_the_best_one_of_train():
    square = np.array([[8.0, 8.0, 24.0, 24.0]])
    other = np.array([[40.0, 40.0, 64.0, 64.0]])
    assert fixed_box([square, square, other], [square, other, other, square], 64)["value"] == 0.5
