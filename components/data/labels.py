"""Reads labels.csv beside the photos: their classes, the group that each belongs to, and their splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from components.data.csv_rows import Columns, Row, csv_rows, read_lines, row_problem
from components.data.entries import BadRow

FILE = "labels.csv"
SEPARATOR = "|"  # between several labels in one cell
KNOWN = ("label", "group", "split")
COLUMNS = Columns(KNOWN, tuple(frozenset({name}) for name in KNOWN), "one or more of label, group and split")


@dataclass
class PhotoLabels:
    """What the rows about one photo say together. lines: where group and split were said first."""

    labels: set[str] = field(default_factory=set)
    group: str | None = None
    split: str | None = None
    lines: dict[str, int] = field(default_factory=dict)


@dataclass
class Labels:
    """photos: by the key of the path. has_classes: the file has a column label. count: all rows, with the rejected."""

    photos: dict[str, PhotoLabels] = field(default_factory=dict)
    has_classes: bool = False
    count: int = 0
    rejected: list[BadRow] = field(default_factory=list)


def read(root: Path, image_keys: Collection[str], key: Callable[[str], str], split_names: Mapping[str, str]) -> Labels:
    """Reads `root`/labels.csv, if there is one. Columns: path, and one or more of label, group and split.

    Several labels of a photo stand in one cell with | between them, or in several rows. image_keys: the keys of all
    images. key: turns a path into its key. split_names: the names of splits that people use, and ours for each.
    Raises ValueError if the first line does not name the columns.
    """
    table, file = Labels(), root / FILE
    if not file.is_file():
        return table

    def is_known(path: str) -> bool:
        return key(path) in image_keys

    for line, row in csv_rows(file, read_lines(file.read_bytes()), COLUMNS, is_known, Counter()):
        table.count += 1
        why = row if isinstance(row, str) else _problem(row, is_known, split_names)
        if not why and isinstance(row, dict):
            table.has_classes |= "label" in row
            photo = table.photos.setdefault(key(row["path"]), PhotoLabels())
            why = _add(photo, row, line, split_names)
        if why:
            table.rejected.append(BadRow(file.name, line, why))
    return table


def _problem(row: Row, is_known: Callable[[str], bool], split_names: Mapping[str, str]) -> str:
    """Returns what is wrong with a row by itself, "" if nothing is."""
    if why := row_problem(row, is_known):
        return why
    if (split := row.get("split")) and split.lower() not in split_names:
        return f"there is no split {split!r}; allowed: train, val, test, or nothing for a split that is drawn"
    return ""


def _add(photo: PhotoLabels, row: Row, line: int, split_names: Mapping[str, str]) -> str:
    """Adds a row to what is known of its photo, or returns in what it contradicts an earlier row."""
    values = {"group": row.get("group") or None, "split": split_names.get(row.get("split", "").lower())}
    for name, value in values.items():
        earlier = getattr(photo, name)
        if value and earlier and value != earlier:
            return f"the {name} is {value!r}, and in line {photo.lines[name]} it is {earlier!r}"
    for name, value in values.items():
        if value:
            setattr(photo, name, value)
            photo.lines.setdefault(name, line)
    photo.labels |= {label.strip() for label in row.get("label", "").split(SEPARATOR)} - {""}
    return ""
