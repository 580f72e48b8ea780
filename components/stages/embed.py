"""Stage: computes one vector for each photo, to search by; vectors that it has already are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from components.config import Strict, read_section, write_config
from components.data.photos import Photos
from components.evaluation import index, issues
from components.evaluation.embeddings import CENTER, KEY, NORMS, TABLE, VECTORS, Embeddings, center_and_norms, chunks
from components.evaluation.features import features
from components.evaluation.index import Index
from components.machine import keep_memory
from components.models.backbone import load
from components.precision import uses_bf16
from components.source_files import digest
from components.stages.exit_code import backbone_parser, exit_code

ISSUES = "issues.csv"
MOST_WITHOUT_INDEX = 100_000  # photos; up to this number each is compared with all others


class EmbedConfig(Strict):
    method: str  # whose backbone; dvc.yaml reads it
    index_from: int = Field(
        100_000, ge=1
    )  # with as many photos an approximate index is written too, if faiss is installed
    duplicate: float = Field(0.9, gt=0, le=1)  # cosine from which on two photos count as near-duplicates


def embed(config: EmbedConfig, backbone: Path, data: Path, out: Path) -> dict[str, Any]:
    """Writes the vectors of all photos, what they belong to, and with many photos an index.

    Returns how many vectors were computed, how many kept, and sentences about the index and the issues.

    A vector in `out` is kept if the backbone is the same and the photo, as it was packed, is too; photos may have been
    added, removed or moved to another split.

    vectors.npy: float32 [N, D], as the backbone computes them; photos.parquet: path, sha256, pixels_sha256, split and
    label, in the same order; center.npy: float32 [D], the mean over train; norms.npy: float32 [N], the length of each
    vector minus the center; embed.json: the digests of the backbone's files. index.faiss, index.json: see
    components/evaluation/index.py; issues.csv: photos to look at, see components/evaluation/issues.py.
    """
    photos = Photos(data)
    out.mkdir(parents=True, exist_ok=True)
    computed, is_unchanged = _vectors(backbone, photos, out)
    write_config(config, out / "config.json")
    embeddings = Embeddings.read(out)
    lines = [*_index(config, embeddings, keep=is_unchanged), _issues(config, embeddings)]
    return {"computed": computed, "kept": len(photos) - computed, "lines": lines}


def _vectors(backbone: Path, photos: Photos, out: Path) -> tuple[int, bool]:
    """Writes all but the index. Returns how many vectors were computed, and True if nothing in the folder changed."""
    table = photos.manifest.select("path", "sha256", "pixels_sha256", "split", "label")
    key = _key(backbone / "backbone", photos.folder)
    old_rows = _find_old_rows(out, key, table)
    new_rows = np.flatnonzero(old_rows < 0)
    if not len(new_rows) and (out / NORMS).is_file() and pl.read_parquet(out / TABLE).equals(table):
        return 0, True
    part = out / f"{VECTORS}.part"
    old = np.load(out / VECTORS, mmap_mode="r") if len(new_rows) < len(old_rows) else None
    model = load(backbone / "backbone") if len(new_rows) else None
    width = old.shape[1] if old is not None else model.dim if model else 0
    vectors = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(len(table), width))
    if old is not None:
        for rows in chunks(np.flatnonzero(old_rows >= 0)):
            vectors[rows] = old[old_rows[rows]]
    if model:
        for rows in chunks(new_rows):
            vectors[rows] = features(model, photos, "embed", rows).numpy()
    vectors.flush()
    center, norms = center_and_norms(vectors, photos.rows("train"))
    (out / KEY).unlink(missing_ok=True)  # without it nothing in the folder is kept, should this be stopped here
    index.remove(out)
    part.replace(out / VECTORS)
    np.save(out / CENTER, center)
    np.save(out / NORMS, norms)
    table.write_parquet(out / TABLE)
    (out / KEY).write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
    return len(new_rows), False


def _index(config: EmbedConfig, embeddings: Embeddings, *, keep: bool) -> list[str]:
    """Writes an index where there are many photos, or keeps it. Returns a sentence about it, none if there are few."""
    count, folder = len(embeddings.vectors), embeddings.folder
    if count < config.index_from:
        index.remove(folder)
        return []
    if not index.installed():
        return [f"search goes through all {count:,} vectors: {index.INSTALL}"]
    if not (keep and (folder / index.ABOUT).is_file()):
        index.build(embeddings)
    return [index.describe(index.about(folder))]


def _issues(config: EmbedConfig, embeddings: Embeddings) -> str:
    """Writes issues.csv. Returns a sentence about it."""
    count, faiss_index = len(embeddings.vectors), Index.read(embeddings)
    file = embeddings.folder / ISSUES
    if faiss_index is None and count >= MOST_WITHOUT_INDEX:
        file.write_text(",".join(issues.COLUMNS) + "\n", encoding="utf-8")
        return f"duplicates and doubtful labels among {count:,} photos are not looked for without an index"
    table = issues.find_issues(embeddings, (faiss_index or embeddings).nearest, config.duplicate)
    table.write_csv(file)
    counts = {kind: int((table["kind"] == kind).sum()) for kind in issues.KINDS}
    words = ", ".join(f"{number} {kind}{'s' * (kind != issues.ODD and number != 1)}" for kind, number in counts.items())
    return f"{words}: {file}"


def _key(backbone: Path, data: Path) -> dict[str, Any]:
    """Returns what a photo's vector depends on besides its packed pixels."""
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    settings = json.loads((data / "config.json").read_text(encoding="utf-8"))
    return {
        "backbone": {name: digest(backbone / name) for name in names},
        "jpeg_quality": settings["data"].get("jpeg_quality"),
        "precision": "bf16" if uses_bf16() else "fp32",
    }


def _find_old_rows(out: Path, key: dict[str, Any], table: pl.DataFrame) -> np.ndarray:
    """Returns for each photo the row of its vector in `out`, -1 if it is not there: int64 [N]."""
    file = out / KEY
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != key:
        return np.full(len(table), -1, dtype=np.int64)
    old_table = pl.read_parquet(out / TABLE).select("pixels_sha256").with_row_index("old_row")
    rows = table.join(old_table, on="pixels_sha256", how="left", maintain_order="left")["old_row"]
    return rows.cast(pl.Int64).fill_null(-1).to_numpy()


def main() -> None:
    parser = backbone_parser(__doc__)
    args = parser.parse_args()
    keep_memory()
    with exit_code("embed", parser):
        counts = embed(read_section("embed", EmbedConfig), args.backbone, args.data, args.out)
    print(f"embed: {counts['computed']} photos computed, {counts['kept']} kept")
    for line in counts["lines"]:
        print(f"embed: {line}")


if __name__ == "__main__":
    main()
