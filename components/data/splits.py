"""Assigns photos to splits so that photos that belong together are not in two of them.

What belongs together: photos that show nearly the same, and photos of one group (a burst, a camera, a patient).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SPLIT_ORDER = {"test": 0, "val": 1, "train": 2, None: 3}  # what is in two splits stays in the first of these


@dataclass(frozen=True)
class Draw:
    """Draws splits. shares: the fraction of photos for each split that is drawn because the source does not have it."""

    seed: int
    shares: Mapping[str, float]

    def __call__(self, key: str) -> str:
        """Returns the split of what `key` names: it depends on the seed and the key alone."""
        draw = int(hashlib.sha256(f"{self.seed} {key}".encode()).hexdigest()[:12], 16) / 16**12
        for split, share in self.shares.items():
            if draw < share:
                return split
            draw -= share
        return "train"


@dataclass(frozen=True)
class Photo:
    """What decides a photo's split. source_split: that the source names, if any. key: what its own draw depends on."""

    source_split: str | None
    key: str
    group: str | None = None

    @property
    def fixed(self) -> bool:
        """True if its split is not drawn: the source names one that is measured."""
        return self.source_split in ("val", "test")


@dataclass(frozen=True)
class Conflict:
    """Why a photo is left out: another row stays in an earlier split. grouped: both have one group."""

    row: int
    grouped: bool


def own_split(photo: Photo, draw: Draw) -> str:
    """Returns the split of a photo that nothing else resembles. All photos of one group have the same."""
    return str(photo.source_split) if photo.fixed else draw(photo.group or photo.key)


def settle(
    photos: Sequence[Photo], pairs: Sequence[tuple[int, int]], draw: Draw
) -> tuple[list[str], dict[int, Conflict]]:
    """Returns the split of each photo, and those that are left out, by row.

    pairs: rows that must not be in two splits. A photo that the source puts in train is left out if it is near to one
    that the source puts in val or test, and so is one of val near to test: the split that is measured stays whole.
    All others are drawn together with the photos that they are near to, by a single key, so that the splits keep their
    shares.
    """
    left_out = _conflicts(photos, pairs)
    splits = [own_split(photo, draw) for photo in photos]
    last_of: dict[str, int] = {}
    links = [(one, other) for one, other in pairs if one not in left_out and other not in left_out]
    for row, photo in enumerate(photos):
        if photo.group and row not in left_out:
            links.append((last_of.get(photo.group, row), row))
            last_of[photo.group] = row
    for rows in connected(links):
        fixed = [row for row in rows if photos[row].fixed]
        if fixed:
            first = min(fixed, key=lambda row: SPLIT_ORDER[photos[row].source_split])
            split = str(photos[first].source_split)
            conflicting = [row for row in rows if photos[row].source_split not in (split, None)]
            left_out |= dict.fromkeys(conflicting, Conflict(first, grouped=False))  # joined by photos without a split
        else:
            groups = [group for row in rows if (group := photos[row].group)]
            split = draw(min(groups or (photos[row].key for row in rows)))
        for row in rows:
            splits[row] = split
    return splits, left_out


def connected(links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Returns the rows that links join, directly or not: lists of two rows or more, each sorted."""
    neighbors = _neighbors(links)
    parts, visited = [], set[int]()
    for start in neighbors:
        part, pending = [], [start]
        while pending:
            row = pending.pop()
            if row not in visited:
                visited.add(row)
                part.append(row)
                pending += neighbors[row]
        if part:
            parts.append(sorted(part))
    return parts


def _conflicts(photos: Sequence[Photo], pairs: Iterable[tuple[int, int]]) -> dict[int, Conflict]:
    """Returns the rows that the source puts in a later split than a row that they are near to, or grouped with."""
    neighbors = _neighbors(pairs)
    left_out: dict[int, Conflict] = {}
    for split in ("test", "val"):
        first_of: dict[str, int] = {}
        for row, photo in enumerate(photos):
            if photo.source_split != split or row in left_out:
                continue
            if photo.group:
                first_of.setdefault(photo.group, row)
            for neighbor in neighbors.get(row, ()):
                if _is_later(photos[neighbor].source_split, split):
                    left_out.setdefault(neighbor, Conflict(row, grouped=False))
        for row, photo in enumerate(photos):
            if photo.group in first_of and _is_later(photo.source_split, split):
                left_out.setdefault(row, Conflict(first_of[str(photo.group)], grouped=True))
    return left_out


def _neighbors(links: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Returns the rows that each row is linked to; a link of a row to itself counts as none."""
    neighbors: dict[int, list[int]] = {}
    for one, other in links:
        if one != other:
            neighbors.setdefault(one, []).append(other)
            neighbors.setdefault(other, []).append(one)
    return neighbors


def _is_later(source_split: str | None, split: str) -> bool:
    return source_split is not None and SPLIT_ORDER[source_split] > SPLIT_ORDER[split]
