"""The fields of a training batch. Each field knows its shape and dtype, and how it is made from photos and rows.

A new kind of field is one subclass of `Field`: batches, contract tests and benchmarks ask it and need no change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from components.data import batched, fused
from components.data.photos import Photos
from components.data.randomness import hash_uniform
from components.data.view_params import ViewParams


@dataclass(frozen=True)
class BatchSource:
    """The photos of one batch, and the key of their random numbers.

    rows: int64 [B], row numbers in `photos`; device: where the batch is created.
    """

    photos: Photos
    rows: np.ndarray
    seed: int
    epoch: int
    device: torch.device

    @property
    def shapes(self) -> Tensor:
        """Height and width of each photo: int64 [B, 2]."""
        return torch.from_numpy(self.photos.shapes[self.rows])

    def uniform(self, position: int, count: int) -> Tensor:
        """Returns float64 [B, count] in [0, 1), which depends on seed, epoch, row and `position` in the batch alone."""
        return hash_uniform(self.seed, self.epoch, self.rows, position, count)

    @cached_property
    def render(self) -> Callable[[ViewParams], Tensor]:
        """Renders uint8 [B, 3, S, S]; the packed pixels are read once for all views of the batch."""
        if self.device.type == "cpu":
            return partial(fused.render, self.photos.pixels(self.rows))
        return partial(batched.render, self.photos.stack(self.rows, self.device))


class Field(ABC):
    """One tensor of a batch, with the photos along its first axis."""

    dtype: ClassVar[torch.dtype]
    shows_labels: ClassVar[bool] = False  # if so, features fit the training photos' labels better than other photos'
    files: ClassVar[tuple[str, ...]] = ()  # of the prepared folder, beside its index and pixels, that the field reads

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one photo's entry, without the batch axis."""

    @abstractmethod
    def make(self, source: BatchSource, position: int) -> Tensor:
        """Returns `dtype` [B, *shape]; `position` is the field's place in the batch, which its random numbers use."""

    def usable(self, photos: Photos, rows: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Returns those of the rows that have what the field is made from; the method is trained on these only."""
        return rows

    def empty(self, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
        """Returns an uninitialized tensor of the field's dtype and shape [batch_size, *shape]."""
        return torch.empty(batch_size, *self.shape, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Draws(Field):
    """`count` random numbers in [0, 1) per photo, for what a method does with its views (masks, positions, angles).

    Like every parameter of a view they depend on seed, epoch and photo alone, not on ranks or restarts.
    """

    count: int
    dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count,)

    def make(self, source: BatchSource, position: int) -> Tensor:
        # float32 would round the largest float64 values to 1
        return source.uniform(position, self.count).float().clamp_max_(1 - 2**-24)


@dataclass(frozen=True)
class Labels(Field):
    """The class of each photo, as an index into `Photos.classes`."""

    dtype = torch.int64
    shows_labels = True

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def usable(self, photos: Photos, rows: np.ndarray) -> np.ndarray:
        return rows[photos.labels(rows).numpy() >= 0]

    def make(self, source: BatchSource, position: int) -> Tensor:  # noqa: ARG002
        return source.photos.labels(source.rows)


@dataclass(frozen=True)
class AllLabels(Field):
    """Which of `classes` classes each photo shows, where photos have several labels."""

    classes: int
    dtype = torch.bool
    shows_labels = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.classes,)

    def make(self, source: BatchSource, position: int) -> Tensor:  # noqa: ARG002
        assert source.photos.label_sets
        return source.photos.label_sets.matrix(source.rows)


@dataclass(frozen=True)
class Index(Field):
    """The number of each photo: its row in the prepared data set, which is the same in every epoch."""

    dtype = torch.int64

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def make(self, source: BatchSource, position: int) -> Tensor:  # noqa: ARG002
        return torch.from_numpy(source.rows.astype(np.int64))


def make_batch(
    photos: Photos,
    rows: np.ndarray,
    fields: Sequence[Field],
    seed: int,
    epoch: int,
    device: torch.device | None = None,
) -> list[Tensor]:
    """Makes every field of one batch, in order, on `device` (default: the CPU). Views for a GPU are rendered there."""
    source = BatchSource(photos, rows, seed, epoch, device or torch.device("cpu"))
    return [field.make(source, position).to(source.device, non_blocking=True) for position, field in enumerate(fields)]
