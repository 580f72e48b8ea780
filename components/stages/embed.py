"""Stage: a backbone and photos -> one vector for each photo, to search by; those it has already are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from components.config import Strict, read_section, write_config
from components.data.photos import Photos
from components.evaluation.embeddings import CENTER, KEY, TABLE, VECTORS
from components.evaluation.features import features
from components.machine import keep_memory
from components.models.backbone import load
from components.precision import uses_bf16
from components.source_files import digest
from components.stages.exit_code import backbone_parser, exit_code

CHUNK = 8192  # photos at a time, so that memory does not grow with their number


class EmbedConfig(Strict):
    method: str  # whose backbone; dvc.yaml reads it


def embed(config: EmbedConfig, backbone: Path, data: Path, out: Path) -> dict[str, int]:
    """Writes the vectors of all photos, and what they belong to. Returns how many were computed, and how many kept.

    A vector in `out` is kept if the backbone is the same and the photo, as it was packed, is too; photos may have been
    added, removed or moved to another split.

    vectors.npy: float32 [N, D]; photos.parquet: path, sha256, pixels_sha256, split and label, in the same order;
    center.npy: float32 [D], the mean over train; embed.json: the digests of the backbone's files.
    """
    photos = Photos(data)
    table = photos.manifest.select("path", "sha256", "pixels_sha256", "split", "label")
    key = _key(backbone / "backbone", data)
    known = _known(out, key, table)
    fresh = np.flatnonzero(known < 0)
    out.mkdir(parents=True, exist_ok=True)
    part = out / f"{VECTORS}.part"
    old = np.load(out / VECTORS, mmap_mode="r") if len(fresh) < len(known) else None
    model = load(backbone / "backbone") if len(fresh) else None
    width = old.shape[1] if old is not None else model.dim if model else 0
    vectors = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(len(table), width))
    if old is not None:
        for rows in _chunks(np.flatnonzero(known >= 0)):
            vectors[rows] = old[known[rows]]
    if model:
        for rows in _chunks(fresh):
            vectors[rows] = features(model, photos, "embed", rows).numpy()
    vectors.flush()
    center = sum((vectors[rows].sum(0, dtype=np.float64) for rows in _chunks(photos.rows("train"))), np.zeros(width))
    (out / KEY).unlink(missing_ok=True)  # without it nothing in the folder is kept, should this be stopped here
    part.replace(out / VECTORS)
    np.save(out / CENTER, (center / max(1, len(photos.rows("train")))).astype(np.float32))
    table.write_parquet(out / TABLE)
    write_config(config, out / "config.json")
    (out / KEY).write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
    return {"computed": len(fresh), "kept": len(table) - len(fresh)}


def _key(backbone: Path, data: Path) -> dict[str, Any]:
    """Returns what else than a photo's packed pixels its vector depends on."""
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    settings = json.loads((data / "config.json").read_text(encoding="utf-8"))
    return {
        "backbone": {name: digest(backbone / name) for name in names},
        "jpeg_quality": settings["data"].get("jpeg_quality"),
        "precision": "bf16" if uses_bf16() else "fp32",
    }


def _known(out: Path, key: dict[str, Any], table: pl.DataFrame) -> np.ndarray:
    """Returns for each photo the row of its vector in `out`, -1 if it is not there: int64 [N]."""
    file = out / KEY
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != key:
        return np.full(len(table), -1, dtype=np.int64)
    before = pl.read_parquet(out / TABLE).select("pixels_sha256").with_row_index("known")
    rows = table.join(before, on="pixels_sha256", how="left", maintain_order="left")["known"]
    return rows.cast(pl.Int64).fill_null(-1).to_numpy()


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def main() -> None:
    parser = backbone_parser(__doc__)
    args = parser.parse_args()
    keep_memory()
    with exit_code("embed", parser):
        counts = embed(read_section("embed", EmbedConfig), args.backbone, args.data, args.out)
    print(f"embed: {counts['computed']} photos computed, {counts['kept']} kept")


if __name__ == "__main__":
    main()
