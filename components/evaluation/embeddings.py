"""The vectors that the stage `embed` wrote, and search among them. Vectors are compared by cosine, centered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from components.evaluation import knn
from components.source_files import digest

if TYPE_CHECKING:
    import polars as pl

VECTORS, TABLE, CENTER, KEY = "vectors.npy", "photos.parquet", "center.npy", "embed.json"


@dataclass(frozen=True)
class Embeddings:
    """vectors: float32 [N, D], memory-mapped; center: their mean over train [D]; folder: what embed wrote."""

    vectors: np.ndarray
    center: Tensor
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Embeddings:
        """Raises ValueError if the stage has not run or was stopped."""
        if not (folder / KEY).is_file():
            raise ValueError(f"{folder} holds no vectors of photos: {KEY} is missing; run: dvc repro embed")
        center = torch.from_numpy(np.load(folder / CENTER))
        return cls(np.load(folder / VECTORS, mmap_mode="r"), center, folder)

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
            raise ValueError(f"{self.folder} is not of the photos that are prepared; run: dvc repro embed")

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns the k most similar photos, best first: cosines [Q, k] and rows [Q, k]. queries: [Q, D].

        Goes through the file in parts, so that memory does not grow with the number of photos.
        """
        queries = queries - self.center
        cosines, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for start in range(0, len(self.vectors), knn.BANK):
            part = torch.from_numpy(np.array(self.vectors[start : start + knn.BANK])) - self.center
            new, places = knn.nearest(queries, part, min(k, len(part)))
            cosines, rows = knn.best((cosines, rows), (new, places + start), k)
        return cosines, rows
