"""CorLoc: how often the box around what a backbone looks at is the box of an object.

As in Siméoni et al., Localizing Objects with Self-Supervised Transformers and no Labels (LOST), BMVC 2021,
https://arxiv.org/abs/2109.14279. The threshold of a map is chosen on training photos, since the best one differs from
map to map (Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020,
https://arxiv.org/abs/2001.07437); and so is whether objects are where a map is high or low: a place that is like the
mean of all places is one of the ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import ndimage

from components.evaluation.statistics import proportion_with_ci

THRESHOLDS = tuple(k / 10 for k in range(1, 10))  # of maps from 0 to 1
LEAST_IOU = 0.5
GRID = 8  # boxes that need no picture have their corners on a grid of so many cells a side


def boxes_of(mask: np.ndarray) -> np.ndarray:
    """Returns the boxes of the objects 1 … n that are seen in a mask [H, W]: top, left, bottom, right, [n, 4]."""
    return np.array([_corners(slices) for slices in ndimage.find_objects(mask) if slices], float).reshape(-1, 4)


def iou(boxes: np.ndarray, other_boxes: np.ndarray) -> np.ndarray:
    """Returns intersection / union of each pair of boxes: [n, 4] and [m, 4] -> [n, m]."""
    first, second = boxes[:, None], other_boxes[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = sides.clip(0).prod(-1)
    return intersection / (
        (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
        + (other_boxes[:, 2:] - other_boxes[:, :2]).prod(1)
        - intersection
    )


def largest_box(mask: np.ndarray) -> np.ndarray:
    """Returns the box [1, 4] of the largest connected part of bool [H, W], [0, 4] of none. Diagonals do not connect."""
    parts, count = ndimage.label(mask)
    if not count:
        return np.empty((0, 4))
    largest = 1 + int(np.bincount(parts.ravel())[1:].argmax())
    return np.array([_corners(ndimage.find_objects(parts, largest)[largest - 1])], float)


def are_located(maps: np.ndarray, boxes: Sequence[np.ndarray], threshold: float, *, low: bool) -> np.ndarray:
    """Returns for which photos the box has an IoU of LEAST_IOU with that of any object: bool [n].

    maps: from 0 to 1, [n, H, W]; boxes: of each photo's objects. The box is around where a map is at least the
    threshold; low: where 1 - map is.
    """
    masks = 1 - maps >= threshold if low else maps >= threshold
    return np.array(
        [_is_located(largest_box(part), photo_boxes) for part, photo_boxes in zip(masks, boxes, strict=True)]
    )


def corloc(
    train: tuple[np.ndarray, Sequence[np.ndarray]], test: tuple[np.ndarray, Sequence[np.ndarray]]
) -> dict[str, float]:
    """Returns the CorLoc on test with its 95 % interval, and the threshold and `low` that are best on train.

    train, test: maps and boxes, see `are_located`.
    """
    settings = [(threshold, low) for low in (False, True) for threshold in THRESHOLDS]
    threshold, low = max(settings, key=lambda setting: int(are_located(*train, setting[0], low=setting[1]).sum()))
    located = are_located(*test, threshold, low=low)
    return {**proportion_with_ci(int(located.sum()), len(located)), "threshold": threshold, "low_places": low}


def fixed_box(train: Sequence[np.ndarray], test: Sequence[np.ndarray], side: int) -> dict[str, float]:
    """Returns the CorLoc on test of the one box that is right most often on train, without a look at the picture.

    train, test: the boxes of each photo's objects; side: of a photo in pixels.
    """
    edges = np.linspace(0, side, GRID + 1)
    spans = list(combinations(edges, 2))
    candidates = np.array([(top, left, bottom, right) for top, bottom in spans for left, right in spans])
    hits = np.stack([(iou(candidates, photo_boxes) >= LEAST_IOU).any(1) for photo_boxes in train])
    best = candidates[hits.sum(0).argmax()][None]
    return proportion_with_ci(sum(_is_located(best, photo_boxes) for photo_boxes in test), len(test))


def _is_located(box: np.ndarray, objects: np.ndarray) -> bool:
    return bool((iou(box, objects) >= LEAST_IOU).any())


def _corners(slices: tuple[slice, ...]) -> list[int]:
    return [span.start for span in slices] + [span.stop for span in slices]
