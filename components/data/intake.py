"""Collects the photos of a data set one by one: packs what is used, and remembers why the rest is not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from components.data.checks import Manifest
from components.data.entries import Entry
from components.data.images import DecodedImage, Rejected

SCHEMA = {name: column.dtype.type for name, column in Manifest.to_schema().columns.items()}  # polars' types
FILE_COLUMNS = ("path", "split", "label", "kind", "why")
QUESTION_TYPES = {"row": pl.Int64, "question": pl.String, "answer": pl.String}


class Intake:
    """Columns of the manifest, of all files and of the questions, and the file of packed photos, in the order of `add`.

    shares: of each split that the source does not have, to be drawn from its training photos.
    """

    def __init__(self, file: Path, seed: int, shares: Mapping[str, float]) -> None:
        self.seed, self.shares = seed, shares
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}
        self.all_files: dict[str, list[str | None]] = {name: [] for name in FILE_COLUMNS}
        self.questions: list[tuple[int, str, str]] = []  # row of the manifest, question, answer
        self.peaks: dict[str, int] = {}  # path of a file with 16 bits a channel -> its largest value
        self.row_of: dict[str, int] = {}  # digest of the pixels -> row of the manifest
        self.source_splits: list[str | None] = []  # by row: the split that the source named
        self.packed_bytes = 0
        self.file = file.open("wb")

    def add(self, entry: Entry, image: DecodedImage | Rejected, packed: bytes) -> None:
        """Takes one photo, or the reason why it cannot be used. packed: its bytes in the packed file."""
        split = entry.split
        if isinstance(image, DecodedImage):
            split = self._split(entry, image)
            image = self.find_duplicate(entry, image, split) or image
        kind, why = (image.kind, _valid_unicode(str(image))) if isinstance(image, Rejected) else (None, None)
        for name, value in zip(FILE_COLUMNS, (entry.path, split, entry.label, kind, why), strict=True):
            self.all_files[name].append(value)
        if isinstance(image, DecodedImage) and split:
            self._pack(entry, image, split, packed)

    def find_duplicate(self, entry: Entry, image: DecodedImage, split: str) -> Rejected | None:
        """Returns a rejection that names the earlier photo with the same pixels, None if there is none."""
        row = self.row_of.get(image.pixels_sha256)
        if row is None:
            return None
        path, its_split, label = (self.columns[name][row] for name in ("path", "split", "label"))
        other = "" if label == entry.label else f", and there it is labeled {label!r}"
        if its_split != split or (entry.split == "train" and self.source_splits[row] != "train"):
            return Rejected("leak", f"the same picture as {path}, which stays in {its_split}{other}")
        return Rejected("duplicate", f"the same picture as {path}{other}")

    def manifest(self) -> pl.DataFrame:
        return pl.DataFrame(self.columns, schema=SCHEMA)

    def files(self) -> pl.DataFrame:
        return pl.DataFrame(self.all_files, schema=dict.fromkeys(FILE_COLUMNS, pl.String))

    def question_table(self) -> pl.DataFrame:
        return pl.DataFrame(self.questions, schema=QUESTION_TYPES, orient="row")

    def _split(self, entry: Entry, image: DecodedImage) -> str:
        """By a hash of the pixels: it depends on neither order nor name, and duplicates are in one split."""
        if entry.split in ("val", "test"):
            return entry.split
        draw = int(hashlib.sha256(f"{self.seed} {image.pixels_sha256}".encode()).hexdigest()[:12], 16) / 16**12
        for split, share in self.shares.items():
            if draw < share:
                return split
            draw -= share
        return "train"

    def _pack(self, entry: Entry, image: DecodedImage, split: str, packed: bytes) -> None:
        row = {
            "path": entry.path,
            "sha256": image.sha256,
            "pixels_sha256": image.pixels_sha256,
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
            "channels": image.channels,
            "bytes": image.bytes,
            "format": image.format,
            "split": split,
            "label": entry.label,
            "caption": entry.caption,
            "notes": "; ".join(image.notes),
            "offset": self.packed_bytes,
            "packed_width": image.pixels.shape[1],
            "packed_height": image.pixels.shape[0],
            "packed_bytes": len(packed),
        }
        number = len(self.source_splits)
        for name, value in row.items():
            self.columns[name].append(value)
        self.source_splits.append(entry.split)
        self.row_of[image.pixels_sha256] = number
        self.questions += [(number, question, answer) for question, answer in entry.questions]
        if image.peak is not None:
            self.peaks[entry.path] = image.peak
        self.file.write(packed)
        self.packed_bytes += len(packed)


def _valid_unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
