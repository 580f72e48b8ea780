"""A prepared data set: one flat file with the pixels of all photos, and an index of where each photo lies in it.

A folder written by `prepare` holds
  pixels.bin         uint8; photo i is height·width·3 bytes from its offset, rows of RGB; or JPEGs, end to end
  index.npz          for training: offsets, shapes, splits, labels, classes; sizes if the photos are JPEGs; all_classes
                     and all_labels if training photos have several labels, see LabelSets
  manifest.parquet   one row per photo, see checks.Manifest
  questions.parquet  row (of the manifest), question, answer
and for generated scenes what is known of them, see truth.py.
Training reads only the first two, so that it runs where polars is not installed; `clip` alone reads the last too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from components.data.label_sets import LabelSets, label_sets

if TYPE_CHECKING:
    import polars as pl

SPLITS = ("train", "val", "test")
Square = Literal[
    "squash", "crop"
]  # how a photo becomes a square: all of it, distorted, or the largest one in its middle


@dataclass(frozen=True)
class Pixels:
    """Some photos: uint8 [bytes], the offset of each in it, int64 [B], and its height and width [B, 2]."""

    flat: np.ndarray
    offsets: np.ndarray
    shapes: np.ndarray

    def __getitem__(self, index: int) -> Tensor:
        """Returns uint8 [3, H, W], a view."""
        (height, width), start = self.shapes[index].tolist(), self.offsets[index]
        flat = self.flat[start : start + height * width * 3]
        return torch.from_numpy(flat.reshape(height, width, 3)).permute(2, 0, 1)


class Photos:
    """The photos of a prepared folder, memory-mapped.

    classes: names in order; a label is an index into them, -1 if there is none, or if there are several.
    label_sets: all labels of each photo, if training photos have several; None if each has one at most.
    Raises ValueError if the folder is not one that `prepare` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "index.npz").is_file():
            raise ValueError(f"{folder} is no prepared data set: it has no index.npz; run the prepare stage first")
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self.offsets, self.shapes = index["offsets"], index["shapes"]  # [N], [N, 2] height and width
            self._splits, self._labels = index["splits"], index["labels"]  # [N], indices into SPLITS and classes
            self.classes: tuple[str, ...] = tuple(index["classes"].tolist())
            self._sizes: np.ndarray | None = index.get("sizes")  # [N], bytes of JPEGs
            self.label_sets: LabelSets | None = None
            if "all_labels" in index:
                self.label_sets = LabelSets(tuple(index["all_classes"].tolist()), index["all_labels"])
        self._same_shape = len(np.unique(self.shapes, axis=0)) == 1  # and contiguous, as `prepare` packs them
        self._resident: Tensor | None = None
        # copy-on-write: torch needs writable memory, and nothing here writes
        self._file = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="c")
        packed = self.shapes.astype(np.int64).prod(1).sum() * 3 if self._sizes is None else self._sizes.sum()
        if len(self._file) != packed:
            raise ValueError(
                f"{folder / 'pixels.bin'} has {len(self._file)} bytes of {packed}; "
                f"copy it again, or repeat the prepare stage"
            )

    @property
    def manifest(self) -> pl.DataFrame:
        import polars as pl

        return pl.read_parquet(self.folder / "manifest.parquet")

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, row: int) -> Tensor:
        """Returns uint8 [3, H, W]: a view into the file, or a decoded JPEG."""
        return self.pixels(np.array([row]))[0]

    def pixels(self, rows: np.ndarray) -> Pixels:
        """Returns the file itself, or decoded JPEGs; decodes on as many threads as torch uses."""
        offsets, shapes = self.offsets[rows], self.shapes[rows]
        if self._sizes is None:
            return Pixels(np.asarray(self._file), offsets, shapes)
        ends = offsets + self._sizes[rows]
        lengths = shapes.astype(np.int64).prod(1) * 3
        decoded = Pixels(np.empty(lengths.sum(), np.uint8), lengths.cumsum() - lengths, shapes)

        def decode(index: int) -> None:
            with Image.open(io.BytesIO(self._file[offsets[index] : ends[index]].data)) as image:
                decoded[index].copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow decodes without the interpreter's lock
            list(pool.map(decode, range(len(rows))))
        return decoded

    def rows(self, *splits: str, labeled: bool = False) -> np.ndarray:
        """Returns row numbers of the given splits, int64, in order; with `labeled` only of photos with one label."""
        keep = np.isin(self._splits, [SPLITS.index(split) for split in splits])
        return np.flatnonzero(keep & (self._labels >= 0) if labeled else keep)

    def labels(self, rows: np.ndarray) -> Tensor:
        """Returns indices into `classes`, int64 [len(rows)]; -1 if there is no label, or if there are several."""
        return torch.from_numpy(self._labels[rows].astype(np.int64))

    def label(self, row: int) -> str | None:
        """Returns the class name of one photo, None if it has none."""
        index = int(self._labels[row])
        return self.classes[index] if index >= 0 else None

    def questions(self, *splits: str) -> pl.DataFrame:
        """Returns row, question and answer, for photos of the given splits."""
        import polars as pl

        questions = pl.read_parquet(self.folder / "questions.parquet")
        return questions.filter(pl.col("row").is_in(self.rows(*splits).tolist()))

    def squares(self, rows: np.ndarray, size: int, square: Square = "squash") -> Tensor:
        """Returns photos as size × size pixels, as ViTImageProcessor makes them: uint8 [len(rows), 3, size, size]."""
        out = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
        pixels = self.pixels(rows)
        for index in range(len(rows)):
            out[index] = _square(pixels[index], size, square)
        return out

    def stack(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Returns photos as they are packed, padded with zeros below and to the right: uint8 [len(rows), 3, H, W].

        If all have one size and the GPU has room, all photos are kept there from the first call on.
        """
        if not self._same_shape or self._sizes is not None:
            pixels, (height, width) = self.pixels(rows), self.shapes[rows].max(0)
            out = np.zeros((len(rows), height, width, 3), np.uint8)  # channels last: seven times faster
            for index in range(len(rows)):
                image = pixels[index].permute(1, 2, 0).numpy()
                out[index, : image.shape[0], : image.shape[1]] = image
            return _to_device(torch.from_numpy(out), device).permute(0, 3, 1, 2)
        height, width = self.shapes[0]
        flat = self._file.reshape(len(self), -1)
        if device.type == "cuda" and (self._resident is not None or _has_room(self._file.nbytes, device)):
            if self._resident is None:
                self._resident = torch.from_numpy(flat).to(device)
            batch = self._resident[torch.from_numpy(rows).to(device, non_blocking=True)]
        else:
            batch = _to_device(torch.from_numpy(flat[rows]), device)  # numpy gathers bytes far faster than torch
        return batch.view(len(rows), int(height), int(width), 3).permute(0, 3, 1, 2)

    def batches(self, rows: np.ndarray, size: int, square: Square = "squash", batch: int = 256) -> Iterator[Tensor]:
        """Yields `squares` of all rows, in order, `batch` at a time."""
        for start in range(0, len(rows), batch):
            yield self.squares(rows[start : start + batch], size, square)


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encodes uint8 [h, w, 3] without chroma subsampling, so that no method learns from what a codec drops."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def write_index(folder: Path, table: pl.DataFrame, *, jpegs: bool = False) -> None:
    """Writes index.npz of a manifest."""
    classes = sorted(table["label"].drop_nulls().unique())
    index_of = {name: index for index, name in enumerate(classes)}
    extra: dict[str, Any] = {"sizes": table["packed_bytes"].to_numpy()} if jpegs else {}
    if sets := label_sets(table["labels"].to_list(), (table["split"] == "train").to_list()):
        extra |= {"all_classes": np.array(sets.classes, dtype=np.str_), "all_labels": sets.indices}
    np.savez(
        folder / "index.npz",
        offsets=table["offset"].to_numpy(),
        shapes=table.select("packed_height", "packed_width").to_numpy(),
        splits=np.array([SPLITS.index(split) for split in table["split"]], dtype=np.int8),
        labels=np.array([index_of.get(label, -1) for label in table["label"]], dtype=np.int32),
        classes=np.array(classes, dtype=np.str_),
        **extra,
    )


def as_square(photo: Image.Image, size: int, square: Square) -> Tensor:
    """Returns `squares` of a photo that is not in the folder, but was opened and reduced as prepare does it."""
    return _square(torch.from_numpy(np.array(photo)).permute(2, 0, 1), size, square)


def _square(image: Tensor, size: int, square: Square) -> Tensor:
    return (resized if square == "squash" else cropped)(image, size)


def cropped(image: Tensor, size: int) -> Tensor:
    """Returns uint8 [3, size, size] of uint8 [3, H, W]: the shorter side is resized to `size`, the longer one cut.

    In this order and with this rounding, as image processors with do_center_crop do it.
    """
    height, width = image.shape[1:]
    shape = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
    scaled = interpolate(image[None], shape, mode="bilinear", antialias=True)[0]
    top, left = ((side - size) // 2 for side in shape)
    return scaled[:, top : top + size, left : left + size]


def resized(image: Tensor, size: int) -> Tensor:
    """Returns uint8 [3, size, size] of uint8 [3, H, W], bilinear with antialiasing."""
    return interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def _has_room(size: int, device: torch.device) -> bool:
    return size < torch.cuda.mem_get_info(device)[0] // 4
