"""Read once: all pictures of a data set are one flat file of uint8 pixels, and an index that says where each lies.

A folder written by `prepare` holds
  pixels.bin         uint8; picture i is height·width·3 bytes from its offset, rows of RGB; or JPEGs, end to end
  index.npz          what training needs: offsets, shapes, splits, labels, classes, of JPEGs their sizes
  manifest.parquet   what a person and a check need: one row a picture, see checks.Manifest
  questions.parquet  row (of the manifest), question, answer
Training reads only the first two, so that it runs where polars is not installed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    import polars as pl

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Pixels:
    """Some pictures: uint8 [bytes], and where in it each begins, int64 [B], with its height and width [B, 2]."""

    flat: np.ndarray
    offsets: np.ndarray
    shapes: np.ndarray

    def __getitem__(self, place: int) -> Tensor:
        """uint8 [3, H, W], a view."""
        (height, width), start = self.shapes[place].tolist(), self.offsets[place]
        flat = self.flat[start : start + height * width * 3]
        return torch.from_numpy(flat.reshape(height, width, 3)).permute(2, 0, 1)


class Photos:
    """The pictures of a prepared folder, memory-mapped.

    classes: names in order; a label is a place in it, -1 where there is none.
    Raises ValueError if the folder is not one that `prepare` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "index.npz").is_file():
            raise ValueError(f"{folder} is no prepared data set: it has no index.npz; run the prepare stage first")
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self.offsets, self.shapes = index["offsets"], index["shapes"]  # [N], [N, 2] height and width
            self._splits, self._labels = index["splits"], index["labels"]  # [N], places in SPLITS and classes
            self.classes: tuple[str, ...] = tuple(index["classes"].tolist())
            self._sizes: np.ndarray | None = index.get("sizes")  # [N], bytes of JPEGs
        self._alike = len(np.unique(self.shapes, axis=0)) == 1  # and one after the other, as `prepare` packs them
        self._resident: Tensor | None = None
        # copy-on-write: torch wants writable memory, and nobody here writes
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
        """uint8 [3, H, W], a view into the file, but for JPEGs."""
        return self.pixels(np.array([row]))[0]

    def pixels(self, rows: np.ndarray) -> Pixels:
        """The file itself, or what its JPEGs decode to, on as many threads as torch uses."""
        offsets, shapes = self.offsets[rows], self.shapes[rows]
        if self._sizes is None:
            return Pixels(np.asarray(self._file), offsets, shapes)
        ends = offsets + self._sizes[rows]
        lengths = shapes.astype(np.int64).prod(1) * 3
        made = Pixels(np.empty(lengths.sum(), np.uint8), lengths.cumsum() - lengths, shapes)

        def decode(place: int) -> None:
            with Image.open(io.BytesIO(self._file[offsets[place] : ends[place]].data)) as image:
                made[place].copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow decodes without the interpreter's lock
            list(pool.map(decode, range(len(rows))))
        return made

    def rows(self, *splits: str, labeled: bool = False) -> np.ndarray:
        """Row numbers of the given splits, int64, in order; with `labeled` only those that have a label."""
        keep = np.isin(self._splits, [SPLITS.index(split) for split in splits])
        return np.flatnonzero(keep & (self._labels >= 0) if labeled else keep)

    def labels(self, rows: np.ndarray) -> Tensor:
        """Places in `classes`, int64 [len(rows)]; -1 where there is no label."""
        return torch.from_numpy(self._labels[rows].astype(np.int64))

    def label(self, row: int) -> str | None:
        """The class name of one picture, if it has one."""
        place = int(self._labels[row])
        return self.classes[place] if place >= 0 else None

    def questions(self, *splits: str) -> pl.DataFrame:
        """row, question, answer, for pictures of the given splits."""
        import polars as pl

        asked = pl.read_parquet(self.folder / "questions.parquet")
        return asked.filter(pl.col("row").is_in(self.rows(*splits).tolist()))

    def squares(self, rows: np.ndarray, size: int) -> Tensor:
        """Whole pictures, antialiased to size × size as ViTImageProcessor does it: uint8 [len(rows), 3, size, size]."""
        out = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
        pixels = self.pixels(rows)
        for place in range(len(rows)):
            out[place] = resized(pixels[place], size)
        return out

    def stack(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Pictures as they are packed, below and to the right filled up with zeros: uint8 [len(rows), 3, H, W].

        Where all are of one size and a GPU has room, it holds them all from the first call on.
        """
        if not self._alike or self._sizes is not None:
            pixels, (height, width) = self.pixels(rows), self.shapes[rows].max(0)
            out = np.zeros((len(rows), height, width, 3), np.uint8)  # as they lie: seven times faster than by channels
            for place in range(len(rows)):
                image = pixels[place].permute(1, 2, 0).numpy()
                out[place, : image.shape[0], : image.shape[1]] = image
            return _sent(torch.from_numpy(out), device).permute(0, 3, 1, 2)
        height, width = self.shapes[0]
        flat = self._file.reshape(len(self), -1)
        if device.type == "cuda" and (self._resident is not None or _has_room(self._file.nbytes, device)):
            if self._resident is None:
                self._resident = torch.from_numpy(flat).to(device)
            taken = self._resident[torch.from_numpy(rows).to(device, non_blocking=True)]
        else:
            taken = _sent(torch.from_numpy(flat[rows]), device)  # numpy gathers bytes far faster than torch
        return taken.view(len(rows), int(height), int(width), 3).permute(0, 3, 1, 2)

    def batches(self, rows: np.ndarray, size: int, batch: int = 256) -> Iterator[Tensor]:
        """`squares` of all rows, in order, `batch` at a time."""
        for start in range(0, len(rows), batch):
            yield self.squares(rows[start : start + batch], size)


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """uint8 [h, w, 3], in full color resolution: a method that looks at colors should not learn what a codec drops."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def write_index(folder: Path, table: pl.DataFrame, *, jpegs: bool = False) -> None:
    """index.npz of a manifest."""
    classes = sorted(table["label"].drop_nulls().unique())
    place = {name: index for index, name in enumerate(classes)}
    sizes: dict[str, Any] = {"sizes": table["packed_bytes"].to_numpy()} if jpegs else {}
    np.savez(
        folder / "index.npz",
        offsets=table["offset"].to_numpy(),
        shapes=table.select("packed_height", "packed_width").to_numpy(),
        splits=np.array([SPLITS.index(split) for split in table["split"]], dtype=np.int8),
        labels=np.array([place.get(label, -1) for label in table["label"]], dtype=np.int32),
        classes=np.array(classes, dtype=np.str_),
        **sizes,
    )


def resized(image: Tensor, size: int) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, size, size], bilinear with antialiasing."""
    return interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]


def _sent(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def _has_room(size: int, device: torch.device) -> bool:
    return size < torch.cuda.mem_get_info(device)[0] // 4
