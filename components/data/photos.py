"""Decode once: all pictures of a data set are one flat file of uint8 pixels, and a manifest that says where each lies.

A folder written by `prepare` holds
  manifest.parquet   one row a picture, see checks.Manifest
  pixels.npy         uint8 [bytes]; picture i is height·width·3 bytes from manifest.offset, rows of RGB
  questions.parquet  row (of the manifest), question, answer
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import interpolate

SPLITS = ("train", "val", "test")


class Photos:
    """The pictures of a prepared folder, memory-mapped.

    Raises ValueError if the folder is not one that `prepare` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "manifest.parquet").is_file():
            raise ValueError(f"{folder} is no prepared data set: it has no manifest.parquet; run the prepare stage first")
        self.manifest = pl.read_parquet(folder / "manifest.parquet")
        # copy-on-write: torch wants writable memory, and nobody here writes
        self.pixels = np.load(folder / "pixels.npy", mmap_mode="c")
        self._offsets = self.manifest["offset"].to_numpy()
        self._shapes = self.manifest.select("packed_height", "packed_width").to_numpy()
        self.classes: tuple[str, ...] = tuple(sorted(self.manifest["label"].drop_nulls().unique()))

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Tensor:
        """uint8 [3, H, W], a view into the file."""
        height, width = self._shapes[row]
        start = self._offsets[row]
        flat = self.pixels[start : start + int(height) * int(width) * 3]
        return torch.from_numpy(flat.reshape(height, width, 3)).permute(2, 0, 1)

    def rows(self, *splits: str, labeled: bool = False) -> np.ndarray:
        """Row numbers of the given splits, int64, in order; with `labeled` only those that have a label."""
        keep = pl.col("split").is_in(splits) & (pl.col("label").is_not_null() if labeled else pl.lit(value=True))
        return self.manifest.with_row_index().filter(keep)["index"].to_numpy().astype(np.int64)

    def labels(self, rows: np.ndarray) -> Tensor:
        """Places in `classes`, int64 [len(rows)]; -1 where there is no label."""
        place = {name: index for index, name in enumerate(self.classes)}
        return torch.tensor([place.get(name, -1) for name in self.manifest["label"].gather(rows.astype(np.uint32))])

    def questions(self, *splits: str) -> pl.DataFrame:
        """row, question, answer, for pictures of the given splits."""
        rows = pl.DataFrame({"row": self.rows(*splits)})
        return pl.read_parquet(self.folder / "questions.parquet").join(rows, on="row", how="semi", maintain_order="left")

    def squares(self, rows: np.ndarray, size: int) -> Tensor:
        """Whole pictures, antialiased to size × size as ViTImageProcessor does it: uint8 [len(rows), 3, size, size]."""
        out = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
        for place, row in zip(out, rows, strict=True):
            place[:] = resized(self[int(row)], size)
        return out

    def batches(self, rows: np.ndarray, size: int, batch: int = 256) -> Iterator[Tensor]:
        """`squares` of all rows, in order, `batch` at a time."""
        for start in range(0, len(rows), batch):
            yield self.squares(rows[start : start + batch], size)


def resized(image: Tensor, size: int) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, size, size], bilinear with antialiasing."""
    return interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]
