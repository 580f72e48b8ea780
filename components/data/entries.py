"""What every source of photos produces: one entry per photo, with what is known before the photo is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from components.data.truth import Truth

DESCRIBE, NAME = "Describe the picture.", "What is in the picture?"


@dataclass(frozen=True, slots=True)
class Entry:
    """One photo before it is read. `fetch` returns a file's bytes, or an image that needs no decoding.

    path: the name it has in the manifest, valid Unicode. split: None if it has to be drawn. label: None if the photo
    has none or several. labels: all of them, sorted. group: photos of one group are in one split. truth: of generated
    photos.
    """

    path: str
    fetch: Callable[[], bytes | Image.Image]
    split: str | None = None
    label: str | None = None
    caption: str | None = None
    questions: tuple[tuple[str, str], ...] = ()  # (question, answer)
    labels: tuple[str, ...] = ()
    group: str | None = None
    truth: Truth | None = None


@dataclass(frozen=True)
class BadRow:
    """A row of a file with captions or labels that cannot be used. line: in the file, from 1."""

    file: str
    line: int
    why: str


@dataclass(frozen=True)
class Source:
    """notes: how the source was read. caption_rows, label_rows: rows of these files, with those that are bad."""

    entries: list[Entry]
    notes: list[str] = field(default_factory=list)
    caption_rows: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)  # of captions
    label_rows: int = 0
    bad_label_rows: list[BadRow] = field(default_factory=list)


def labeled(entry: Entry, labels: Iterable[str]) -> Entry:
    """Returns `entry` with the labels: `label` is the one that it has, None if there are none or several."""
    names = tuple(sorted(set(labels)))
    return replace(entry, labels=names, label=names[0] if len(names) == 1 else None)


def plain_name(label: str) -> str:
    """Returns the name of a class as it is written in a sentence."""
    return label.replace("_", " ").replace("-", " ").lower()


def with_questions(entry: Entry, rows: Sequence[Mapping[str, str]] = ()) -> Entry:
    """Returns `entry` with its first caption and a question for every caption, question and label.

    rows: with the key caption, or question and answer.
    """
    captions = [row["caption"] for row in rows if row.get("caption")]
    questions = tuple((row["question"], row["answer"]) for row in rows if row.get("question"))
    questions += tuple((DESCRIBE, caption) for caption in captions)
    if entry.label is not None:
        questions += ((NAME, plain_name(entry.label)),)
    return replace(entry, caption=captions[0] if captions else None, questions=questions)
