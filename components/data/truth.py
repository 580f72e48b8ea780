"""What is known of a generated photo beside its class: which pixels show which object, and what the objects are like.

`prepare` writes it for the source `scenes` only, in the order of manifest.parquet:
  masks.npz      masks: uint8 [N, 64, 64], compressed
  truth.parquet  kind, ground, colors and quarters of each photo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

MASKS, TABLE = "masks.npz", "truth.parquet"


@dataclass(frozen=True, slots=True)
class Truth:
    """mask: of the whole photo, uint8 [H, W]: 0 the ground, 1 … n the objects, where they are seen.

    colors, quarters: of each object, by its number in the mask; a quarter is 0 (top left) to 3, row by row.
    """

    mask: npt.NDArray[np.uint8]
    kind: str  # of all objects
    ground: str
    colors: tuple[str, ...]
    quarters: tuple[int, ...]

    @property
    def number(self) -> int:
        return len(self.colors)


def write_truths(folder: Path, truths: Sequence[Truth]) -> None:
    """Writes both files; removes them if nothing is known, so that none of other photos stays.

    truths: of all photos of the manifest, in its order, with masks of one size; or empty.
    """
    if not truths:
        for name in (MASKS, TABLE):
            (folder / name).unlink(missing_ok=True)
        return
    import polars as pl

    np.savez_compressed(folder / MASKS, masks=np.stack([truth.mask for truth in truths]))
    names = [field.name for field in fields(Truth) if field.name != "mask"]
    pl.DataFrame({name: [getattr(truth, name) for truth in truths] for name in names}).write_parquet(folder / TABLE)


def read_truths(folder: Path) -> list[Truth] | None:
    """Returns what is known of each photo of a prepared folder, None if it was written without."""
    if not (folder / MASKS).is_file():
        return None
    import polars as pl

    with np.load(folder / MASKS, allow_pickle=False) as file:
        masks = file["masks"]
    rows = pl.read_parquet(folder / TABLE).iter_rows(named=True)
    return [
        Truth(mask, row["kind"], row["ground"], tuple(row["colors"]), tuple(row["quarters"]))
        for mask, row in zip(masks, rows, strict=True)
    ]
