"""Collects the photos of a data set one by one: packs what is used, and remembers why the rest is not."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from components.data.checks import Manifest
from components.data.entries import Entry
from components.data.images import DecodedImage, Rejected
from components.data.near_duplicates import Pair, Signature, find_pairs
from components.data.quality import Measures
from components.data.splits import Draw, Photo, connected, own_split, settle

SCHEMA = {name: column.dtype.type for name, column in Manifest.to_schema().columns.items()}  # polars' types
FILE_COLUMNS = ("path", "split", "label", "kind", "why")
QUESTION_TYPES = {"row": pl.Int64, "question": pl.String, "answer": pl.String}


@dataclass(frozen=True)
class ReadPhoto:
    """One photo that was read. packed: its bytes in the packed file. signature: None if none is needed."""

    image: DecodedImage
    packed: bytes
    measures: Measures
    signature: Signature | None


class Intake:
    """Columns of the manifest, of all files and of the questions, and the file of packed photos, in the order of `add`.

    shares: of each split that the source does not have, to be drawn from its training photos.
    """

    def __init__(self, file: Path, seed: int, shares: Mapping[str, float]) -> None:
        self.draw = Draw(seed, shares)
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}
        self.all_files: dict[str, list[str | None]] = {name: [] for name in FILE_COLUMNS}
        self.questions: list[tuple[int, str, str]] = []  # row of the manifest, question, answer
        self.peaks: dict[str, int] = {}  # path of a file with 16 bits a channel -> its largest value
        self.row_of: dict[str, int] = {}  # digest of the pixels -> row of the manifest
        self.photos: list[Photo] = []  # by row, as are the next three
        self.measures: list[Measures] = []
        self.signatures: list[Signature] = []
        self.file_indices: list[int] = []  # in the list of all files
        self.pairs: list[Pair] = []  # of rows that show nearly the same
        self.moved = self.left_out = 0  # photos, by `settle`
        self.packed_bytes = 0
        self.file = file.open("wb")

    def add(self, entry: Entry, result: ReadPhoto | Rejected) -> None:
        """Takes one photo, or the reason why it cannot be used."""
        split, rejected = entry.split, result if isinstance(result, Rejected) else None
        if isinstance(result, ReadPhoto):
            photo = Photo(entry.split, result.image.pixels_sha256, entry.group)
            split = own_split(photo, self.draw)
            rejected = self.find_duplicate(entry, result.image, split)
            if not rejected:
                self._pack(entry, photo, result, split)
        kind, why = (rejected.kind, _valid_unicode(str(rejected))) if rejected else (None, None)
        for name, value in zip(FILE_COLUMNS, (entry.path, split, entry.label, kind, why), strict=True):
            self.all_files[name].append(value)

    def find_duplicate(self, entry: Entry, image: DecodedImage, split: str) -> Rejected | None:
        """Returns a rejection that names the earlier photo with the same pixels, None if there is none."""
        row = self.row_of.get(image.pixels_sha256)
        if row is None:
            return None
        path, earlier_split, labels = (self.columns[name][row] for name in ("path", "split", "labels"))
        label = "|".join(labels) or None
        label_note = "" if labels == list(entry.labels) else f", and there it is labeled {label!r}"
        if earlier_split != split or (entry.split == "train" and self.photos[row].source_split != "train"):
            return Rejected("leak", f"the same picture as {path}, which stays in {earlier_split}{label_note}")
        return Rejected("duplicate", f"the same picture as {path}{label_note}")

    def settle(self) -> None:
        """Finds near-duplicates, and assigns the splits so that what belongs together is in one of them.

        The file of packed photos must be closed. See splits.settle for what is moved and what is left out.
        """
        pairs = find_pairs(self.signatures)
        splits, left_out = settle(self.photos, [(pair.first, pair.second) for pair in pairs], self.draw)
        for row, (before, after) in enumerate(zip(self.columns["split"], splits, strict=True)):
            if row not in left_out and before != after:
                self.moved += 1
                self.all_files["split"][self.file_indices[row]] = self.columns["split"][row] = after
        for row, conflict in left_out.items():
            path, split = (self.columns[name][conflict.row] for name in ("path", "split"))
            relation = (
                f"of one group ({self.photos[row].group}) with" if conflict.grouped else "nearly the same picture as"
            )
            self.all_files["kind"][self.file_indices[row]] = "leak"
            self.all_files["why"][self.file_indices[row]] = f"{relation} {path}, which stays in {split}"
        self.left_out = len(left_out)
        self.pairs = self._remove(set(left_out), pairs) if left_out else pairs

    def near_groups(self) -> list[list[int]]:
        """Returns lists of rows that show nearly the same, directly or by way of others."""
        return connected((pair.first, pair.second) for pair in self.pairs)

    def manifest(self) -> pl.DataFrame:
        return pl.DataFrame(self.columns, schema=SCHEMA)

    def files(self) -> pl.DataFrame:
        return pl.DataFrame(self.all_files, schema=dict.fromkeys(FILE_COLUMNS, pl.String))

    def question_table(self) -> pl.DataFrame:
        return pl.DataFrame(self.questions, schema=QUESTION_TYPES, orient="row")

    def _remove(self, rows: Container[int], pairs: Sequence[Pair]) -> list[Pair]:
        """Removes rows from all that was collected, and their pixels from the file. Returns the other pairs."""
        remaining = [row for row in range(len(self.photos)) if row not in rows]
        new_row = {row: number for number, row in enumerate(remaining)}
        path = Path(self.file.name)
        shorter = path.with_name(f"{path.name}.shorter")
        with path.open("rb") as old, shorter.open("wb") as file:
            for row in remaining:
                old.seek(self.columns["offset"][row])
                file.write(old.read(self.columns["packed_bytes"][row]))
            self.packed_bytes = file.tell()
        shorter.replace(path)
        removed_paths = {path for row, path in enumerate(self.columns["path"]) if row in rows}
        self.peaks = {path: peak for path, peak in self.peaks.items() if path not in removed_paths}
        self.columns = {name: [values[row] for row in remaining] for name, values in self.columns.items()}
        ends = list(itertools.accumulate(self.columns["packed_bytes"]))
        self.columns["offset"] = [0, *ends][: len(remaining)]
        self.photos, self.measures = [self.photos[row] for row in remaining], [self.measures[row] for row in remaining]
        self.signatures = [self.signatures[row] for row in remaining] if self.signatures else []
        self.questions = [
            (new_row[row], question, answer) for row, question, answer in self.questions if row in new_row
        ]
        remaining_pairs = (pair for pair in pairs if pair.first in new_row and pair.second in new_row)
        return [Pair(new_row[pair.first], new_row[pair.second], pair.correlation) for pair in remaining_pairs]

    def _pack(self, entry: Entry, photo: Photo, result: ReadPhoto, split: str) -> None:
        image = result.image
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
            "packed_bytes": len(result.packed),
            "labels": list(entry.labels),
            "group": entry.group,
        }
        number = len(self.photos)
        for name, value in row.items():
            self.columns[name].append(value)
        self.photos.append(photo)
        self.measures.append(result.measures)
        if result.signature:
            self.signatures.append(result.signature)
        self.file_indices.append(len(self.all_files["path"]))
        self.row_of[image.pixels_sha256] = number
        self.questions += [(number, question, answer) for question, answer in entry.questions]
        if image.peak is not None:
            self.peaks[entry.path] = image.peak
        self.file.write(result.packed)
        self.packed_bytes += len(result.packed)


def _valid_unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
