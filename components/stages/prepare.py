"""Stage: files of any kind -> validated rows and packed pixels."""

from __future__ import annotations

import hashlib
import json
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from components.config import Fraction, Seed, Strict, read, write
from components.data import sources
from components.data.checks import CheckConfig, Manifest, intake_schema, validate
from components.data.images import Picture, Rejected
from components.data.images import read as read_picture
from components.data.photos import jpeg, write_index
from components.data.summary import counted, summarize, too_large
from components.progress import progress

SCHEMA = {name: column.dtype.type for name, column in Manifest.to_schema().columns.items()}  # polars' types
SPLIT_ORDER = {"test": 0, "val": 1, "train": 2, None: 3}  # a picture in two splits stays in the one we measure on


class DataConfig(Strict):
    """jpeg_quality: of the packed pictures, where raw pixels take more room than there is; None keeps them raw."""

    source: str
    size: int = Field(ge=8)
    max_rejected: Fraction = 0.1
    jpeg_quality: int | None = Field(None, ge=1, le=100)


class PrepareConfig(CheckConfig):
    """count: pictures of `scenes`. val_share, test_share: of the splits that the source does not have."""

    count: int = Field(8000, ge=10)
    val_share: float = Field(0.1, ge=0, lt=0.5)
    test_share: float = Field(0.2, ge=0, lt=0.5)
    seed: Seed = 0


class Ran(Strict):
    data: DataConfig
    prepare: PrepareConfig


class Intake:
    """Goes through the entries once, in order; packs what is used and remembers why the rest is not."""

    def __init__(self, out: Path, config: PrepareConfig, given_splits: set[str | None]) -> None:
        self.config = config
        shares = {"test": config.test_share, "val": config.val_share}
        self.drawn = {split: share for split, share in shares.items() if split not in given_splits}
        self.rows: list[dict[str, Any]] = []  # of the manifest
        self.offered: list[dict[str, Any]] = []
        self.questions: list[dict[str, Any]] = []
        self.seen: dict[str, dict[str, Any]] = {}  # by what is seen
        self.offset = 0
        self.file = (out / "pixels.bin").open("wb")

    def take(self, entry: sources.Entry, found: Picture | Rejected, content: bytes) -> None:
        """content: the picture as it is to be packed."""
        split = entry.split
        if isinstance(found, Picture):
            split = self._split(entry, found)
            found = self._twin(entry, found, split) or found
        kind, why = (found.kind, str(found)) if isinstance(found, Rejected) else (None, None)
        self.offered.append({"path": entry.path, "split": split, "label": entry.label, "kind": kind, "why": why})
        if isinstance(found, Picture) and split:
            self._pack(entry, found, split, content)

    def _split(self, entry: sources.Entry, picture: Picture) -> str:
        """By a hash of what is seen: it depends on neither order nor name, and twins meet in one split."""
        if entry.split in ("val", "test"):
            return entry.split
        draw = int(hashlib.sha256(f"{self.config.seed} {picture.pixels_sha256}".encode()).hexdigest()[:12], 16) / 16**12
        for split, share in self.drawn.items():
            if draw < share:
                return split
            draw -= share
        return "train"

    def _twin(self, entry: sources.Entry, picture: Picture, split: str) -> Rejected | None:
        twin = self.seen.get(picture.pixels_sha256)
        if twin is None:
            return None
        other = "" if twin["label"] == entry.label else f", and there it is labeled {twin['label']!r}"
        if twin["split"] != split or (entry.split == "train" and twin["given"] != "train"):
            return Rejected("leak", f"the same picture as {twin['path']}, which stays in {twin['split']}{other}")
        return Rejected("duplicate", f"the same picture as {twin['path']}{other}")

    def _pack(self, entry: sources.Entry, picture: Picture, split: str, content: bytes) -> None:
        row = {
            "path": entry.path,
            "sha256": picture.sha256,
            "pixels_sha256": picture.pixels_sha256,
            "width": picture.width,
            "height": picture.height,
            "mode": picture.mode,
            "channels": picture.channels,
            "bytes": picture.bytes,
            "format": picture.format,
            "split": split,
            "label": entry.label,
            "caption": entry.caption,
            "notes": "; ".join(picture.notes),
            "offset": self.offset,
            "packed_width": picture.pixels.shape[1],
            "packed_height": picture.pixels.shape[0],
            "packed_bytes": len(content),
        }
        self.seen[picture.pixels_sha256] = {**row, "given": entry.split}
        self.questions += [{"row": len(self.rows), "question": q, "answer": a} for q, a in entry.questions]
        self.rows.append(row)
        self.file.write(content)
        self.offset += len(content)


def prepare(config: Ran, out: Path, downloads: Path) -> dict[str, Any]:
    """Write what data.photos describes, validation.json and rejected.jsonl to `out`; the validation summary.

    Raises ValueError if too many files are rejected or the data set as a whole cannot be trained on.
    """
    out.mkdir(parents=True, exist_ok=True)
    source = sources.read(config.data.source, config.prepare.count, config.prepare.seed, downloads)
    limits, quality = config.prepare.limits(), config.data.jpeg_quality

    def look(entry: sources.Entry) -> tuple[Picture | Rejected, bytes]:
        try:
            picture = read_picture(entry.fetch(), config.data.size, limits)
        except Rejected as why:
            return why, b""
        except OSError as error:  # no permission, gone since it was listed, a disk that fails
            return Rejected("unreadable", str(error)), b""
        return picture, jpeg(picture.pixels, quality) if quality else picture.pixels.tobytes()

    entries = sorted(source.entries, key=lambda entry: SPLIT_ORDER[entry.split])
    intake = Intake(out, config.prepare, {entry.split for entry in entries})
    with ThreadPoolExecutor() as pool, intake.file:  # Pillow decodes and shrinks without the interpreter's lock
        looked = zip(entries, pool.map(look, entries), strict=True)
        for entry, (found, content) in progress(looked, "prepare", len(entries)):
            intake.take(entry, found, content)

    offered = pl.DataFrame(intake.offered, schema=dict.fromkeys(("path", "split", "label", "kind", "why"), pl.String))
    manifest = pl.DataFrame(intake.rows, schema=SCHEMA)
    summary = {**summarize(offered, manifest), "notes": source.notes, "warnings": []}
    rejected = offered.filter(pl.col("kind").is_not_null()).select("path", "kind", "why")
    rejected.write_ndjson(out / "rejected.jsonl")
    try:
        summary["warnings"] = validate(offered, intake_schema(config.prepare, config.data.max_rejected))
        summary["warnings"] += validate(manifest, Manifest) + too_large(intake.offset, quality)
    except ValueError as error:
        said = f"rejected: {len(rejected)} of {len(offered)}: {counted(summary['rejected'])}; the first:"
        first = [f"  {path}: {why}" for path, _, why in rejected.head(10).iter_rows()]
        raise ValueError("\n".join([str(error), said, *first])) from None
    finally:
        (out / "validation.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    manifest.write_parquet(out / "manifest.parquet")
    asked = {"row": pl.Int64, "question": pl.String, "answer": pl.String}
    pl.DataFrame(intake.questions, schema=asked).write_parquet(out / "questions.parquet")
    write_index(out, manifest, jpegs=bool(quality))
    write(config, out / "config.json")
    return summary


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--downloads", type=Path, required=True, help="where torchvision's data sets are kept")
    given = parser.parse_args()
    try:
        config = Ran(data=read("data", DataConfig), prepare=read("prepare", PrepareConfig))
        summary = prepare(config, given.out, given.downloads)
    except ValueError as error:
        parser.exit(2, f"prepare: {error}\n")
    print(f"prepare: {summary['used']} of {summary['offered']} pictures used, rejected: {counted(summary['rejected'])}")
    for line in [*summary["notes"], *summary["warnings"]]:
        print(f"prepare: {line}")


if __name__ == "__main__":
    main()
