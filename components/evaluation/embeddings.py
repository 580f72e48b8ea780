"""The vectors that the stage `embed` wrote, and search among them. Vectors are compared by cosine, centered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from components.evaluation import knn
from components.source_files import digest

if TYPE_CHECKING:
    import polars as pl

VECTORS, NORMS, TABLE, CENTER, KEY = "vectors.npy", "norms.npy", "photos.parquet", "center.npy", "embed.json"
CHUNK = 8192  # vectors at a time, so that memory does not grow with their number
ROUNDING = 1e-5  # a vector that is nearer to the center than this part of the center's length has no direction


def center_and_norms(vectors: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of the rows `train`, [D], and each vector's distance from it, [N]: float32. vectors: [N, D]."""
    total = np.zeros(vectors.shape[1])
    for rows in chunks(train):
        total += vectors[rows].sum(0, dtype=np.float64)
    center = (total / max(1, len(train))).astype(np.float32)
    norms = [np.linalg.norm(vectors[rows] - center, axis=1) for rows in chunks(np.arange(len(vectors)))]
    return center, np.concatenate(norms)


def chunks(rows: np.ndarray, size: int | None = None) -> Iterator[np.ndarray]:
    """Returns the rows, `size` or CHUNK at a time."""
    size = size or CHUNK
    return (rows[start : start + size] for start in range(0, len(rows), size))


@dataclass(frozen=True)
class Embeddings:
    """vectors: float32 [N, D], memory-mapped; norms: their distances from `center`, the mean over train [D].

    folder: what embed wrote.
    """

    vectors: np.ndarray
    norms: Tensor
    center: Tensor
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Embeddings:
        """Raises ValueError if the stage has not run, was stopped, or is of an earlier version."""
        for name in (KEY, NORMS):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} holds no vectors of photos: {name} is missing; run: dvc repro embed")
        norms, center = (torch.from_numpy(np.load(folder / name)) for name in (NORMS, CENTER))
        # copy-on-write: torch needs writable memory, and nothing here writes
        return cls(np.load(folder / VECTORS, mmap_mode="c"), norms, center, folder)

    @property
    def table(self) -> pl.DataFrame:
        """Returns path, sha256, pixels_sha256, split and label of each vector."""
        import polars as pl

        return pl.read_parquet(self.folder / TABLE)

    def check(self, backbone: Path, manifest: pl.DataFrame) -> None:
        """Raises ValueError if the vectors are another backbone's, or of other photos than those in the manifest."""
        key = json.loads((self.folder / KEY).read_text(encoding="utf-8"))
        for name, expected in key["backbone"].items():
            if digest(backbone / name) != expected:
                raise ValueError(f"{self.folder} is not of the backbone in {backbone}; run: dvc repro embed")
        if self.table["pixels_sha256"].to_list() != manifest["pixels_sha256"].to_list():
            raise ValueError(f"{self.folder} is not from the photos that are prepared; run: dvc repro embed")

    def directions(self, rows: np.ndarray | slice) -> Tensor:
        """Returns the vectors of some photos, centered and of length 1: float32 [rows, D]."""
        return (torch.from_numpy(self.vectors[rows]) - self.center) * self._scales()[rows, None]

    def nearest(self, queries: Tensor, k: int, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the k most similar photos, best first: cosines [Q, k] and rows [Q, k]. queries: [Q, D], not centered.

        among: bool [N], the photos that may be returned; all by default. Goes through the file in parts, so that memory
        does not grow with the number of photos.
        """
        queries, scales = normalize(queries - self.center, dim=1), self._scales()
        if among is not None:
            k = min(k, int(among.sum()))
        tiles = list(queries.split(knn.TILE))
        candidates = [(tile.new_empty(len(tile), 0), torch.empty(len(tile), 0, dtype=torch.long)) for tile in tiles]
        for start in range(0, len(self.vectors), knn.BANK):
            part = torch.from_numpy(self.vectors[start : start + knn.BANK])  # no copy
            span = slice(start, start + knn.BANK)
            for number, tile in enumerate(tiles):
                # q · (v - c) = q · v - q · c, so that no centered copy of the vectors is made for each search
                cosines = torch.addmm(-(tile @ self.center)[:, None], tile, part.T).mul_(scales[span])
                if among is not None:
                    cosines.masked_fill_(~among[span], -2.0)  # below any cosine
                new, rows = knn.largest(cosines, k)
                candidates[number] = knn.best(candidates[number], (new, rows + start), k)
        return torch.cat([cosines for cosines, _ in candidates]), torch.cat([rows for _, rows in candidates])

    def _scales(self) -> Tensor:
        """Returns what makes the centered vectors' lengths 1, and 0 for those that are at the center: [N]."""
        at_center = self.norms <= ROUNDING * self.center.norm()
        return torch.where(at_center, 0.0, 1 / self.norms.clamp_min(1e-30))
