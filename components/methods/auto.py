"""Computes the settings that are `auto` in params.yaml from the number and size of the photos.

For each setting, the rule gives the tuned value for the 5,588 training photos of `scenes` at 64 pixels: batches of 64,
views of 40 pixels, a queue of 1,024 and 256 prototypes.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from components.config import Auto


class TrainingSize(NamedTuple):
    """The sizes from which the settings of a method are computed."""

    photos: int  # in the training split
    batch_size: int


def batch_size(photos: int) -> int:
    """Returns 64, or the largest power of two up to a quarter of the photos, so that an epoch has four steps."""
    return min(64, power_of_two(photos // 4, at_least=2))


def image_size(side: int, patch_size: int = 1) -> int:
    """Returns the side of a view in pixels, a multiple of `patch_size`, for photos packed with `side` pixels.

    Five eighths of `side`, so that crops are reduced more often than enlarged; but not below 40 pixels, or all of
    `side` where that is less.
    """
    pixels = max(side * 5 // 8, min(side, 40), patch_size)
    return pixels // patch_size * patch_size


def queue_length(data: TrainingSize) -> int:
    """Returns the number of keys in a queue: a quarter of the photos, as a power of two.

    A longer queue would often hold an earlier view of the same photo.

    At least two batches of keys where the photos allow it, at most MoCo's 65,536.
    """
    quarter = min(65536, power_of_two(data.photos // 4, at_least=1))
    return min(data.photos, max(quarter, 2 * data.batch_size))


def prototypes(data: TrainingSize) -> int:
    """Returns the number of prototypes: one for 16 photos, a power of two, at least 16 and at most iBOT's 8,192."""
    return min(8192, power_of_two(data.photos // 16, at_least=16))


def power_of_two(limit: int, at_least: int) -> int:
    """Returns the largest power of two up to `limit`, but no less than `at_least`."""
    return max(at_least, 1 << (limit.bit_length() - 1) if limit > 0 else 0)


QueueLength = Annotated[int, Auto(queue_length)]
Prototypes = Annotated[int, Auto(prototypes)]
