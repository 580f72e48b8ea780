"""Vectors in the format of the stage embed, without photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from components.evaluation.embeddings import CENTER, KEY, NORMS, TABLE, VECTORS, Embeddings, center_and_norms


def write(folder: Path, vectors: np.ndarray, labels: Sequence[str | None] | None = None) -> Embeddings:
    """Returns what was written: photo i is called i.jpg, and every fifth is in test."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(vectors)
    splits = ["test" if row % 5 == 4 else "train" for row in range(count)]
    center, norms = center_and_norms(vectors, np.flatnonzero(np.array(splits) == "train"))
    for name, array in ((VECTORS, vectors), (CENTER, center), (NORMS, norms)):
        np.save(folder / name, array)
    paths = [f"{row}.jpg" for row in range(count)]
    columns = {"path": paths, "sha256": paths, "pixels_sha256": paths, "split": splits}
    pl.DataFrame({**columns, "label": pl.Series(labels or [None] * count, dtype=pl.String)}).write_parquet(
        folder / TABLE
    )
    (folder / KEY).write_text("{}", encoding="utf-8")
    return Embeddings.read(folder)


def clusters(
    count: int, kinds: int, width: int = 16, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors around random centers, float32 [count, width], off the origin, and the kind of each [count]."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, kinds, count)
    centers = random.standard_normal((kinds, width))
    noise = spread * random.standard_normal((count, width))
    return (3 + centers[kind] + noise).astype(np.float32), kind
