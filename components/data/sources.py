"""Whatever holds pictures becomes one list of entries: what to read, and what is already known about it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from components.data import scenes

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif")
FOLDERS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
CAPTIONS = ("captions.csv", "captions.jsonl")
DESCRIBE, NAME = "Describe the picture.", "What is in the picture?"

# torchvision's classes, and which of their own splits become ours
DATASETS: dict[str, tuple[str, dict[str, dict[str, object]]]] = {
    "cifar10": ("CIFAR10", {"train": {"train": True}, "test": {"train": False}}),
    "cifar100": ("CIFAR100", {"train": {"train": True}, "test": {"train": False}}),
    "dtd": ("DTD", {s: {"split": s} for s in ("train", "val", "test")}),
    "eurosat": ("EuroSAT", {"": {}}),
    "flowers102": ("Flowers102", {s: {"split": s} for s in ("train", "val", "test")}),
    "food101": ("Food101", {s: {"split": s} for s in ("train", "test")}),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "test": {"split": "val"}}),
    "pets": ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "stl10": ("STL10", {"train": {"split": "train+unlabeled"}, "test": {"split": "test"}}),
    "svhn": ("SVHN", {"train": {"split": "train"}, "test": {"split": "test"}}),
}


@dataclass(frozen=True)
class Entry:
    """One picture before anyone has looked at it. `fetch` gives a file's bytes, or a picture that needs no decoding."""

    path: str
    fetch: Callable[[], bytes | Image.Image]
    split: str | None = None  # None: to be drawn
    label: str | None = None
    caption: str | None = None
    questions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    entries: list[Entry]
    notes: list[str] = field(default_factory=list)  # what a person should know about how the folder was read


def read(source: str, count: int, seed: int, downloads: Path) -> Source:
    """The entries of `source`: scenes, a torchvision data set's name, or a folder.

    Raises ValueError, saying what is allowed, if it is none of them or holds no picture.
    """
    folder = named(source)
    if folder:
        return _folder(folder)
    if source == "scenes":
        return Source(list(_scenes(count, seed)))
    return Source(list(_torchvision(source, downloads)))


def named(source: str) -> Path | None:
    """The folder that is meant, None for what is no folder. Raises ValueError if it is nothing that can be read."""
    if source == "scenes" or source in DATASETS:
        return None
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"data.source is {source!r}, which is no folder here ({folder.resolve()}); allowed: a folder of "
            f"images, scenes, or one of torchvision's data sets: {', '.join(DATASETS)}"
        )
    return folder


def _scenes(count: int, seed: int) -> Iterator[Entry]:
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for index, scene in enumerate(pool.map(partial(scenes.draw, seed), range(count), chunksize=100)):
            image, asked = Image.fromarray(scene.pixels), (*scene.questions, (DESCRIBE, scene.caption))
            yield Entry(f"scenes/{index:05d}.png", image.copy, None, scene.label, scene.caption, asked)


def _torchvision(name: str, root: Path) -> Iterator[Entry]:
    from torchvision import datasets

    kind, splits = DATASETS[name]
    for split, arguments in splits.items():
        try:
            dataset = getattr(datasets, kind)(root=str(root), download=True, **arguments)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"data.source {name} could not be downloaded to {root} ({error}). It needs internet once; without it, "
                "unpack the pictures yourself and give their folder, or use scenes"
            ) from error
        classes = getattr(dataset, "classes", None)
        for index in range(len(dataset)):
            label = int(dataset[index][1])
            said = None if label < 0 else classes[label] if classes else str(label)  # STL-10's unlabeled are -1
            said = said[0] if isinstance(said, tuple) else said  # Imagenette's have several names
            path = f"{name}/{split or 'all'}/{index:06d}"
            yield _with_captions(Entry(path, partial(_pair, dataset, index), split or None, said), [])


def _pair(dataset: list[tuple[Image.Image, int]], index: int) -> Image.Image:
    return dataset[index][0]


def _folder(root: Path) -> Source:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path.relative_to(root)))
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if not pictures:
        raise ValueError(
            f"{root.resolve()} holds no picture; looked for {', '.join(PICTURES)} in it and its subfolders"
        )
    said, notes = _captions(root), []
    within = {path.relative_to(root).parts[:-1] for path in pictures}
    first, *others_first = {folders[0] if folders else "" for folders in within}
    if first and not others_first and first.lower() not in FOLDERS and not said and any(len(f) > 1 for f in within):
        source = _folder(root / first)  # one folder too high
        return Source(source.entries, [f"all pictures are in {first}, so that is what was read", *source.notes])
    if others := [path.name for path in files if path not in set(pictures) and path.name not in CAPTIONS]:
        notes.append(f"not looked at, as they are no pictures: {len(others)}, the first: {others[0]}")
    top = {path.relative_to(root).parts[0] for path in pictures}
    named = {name for name in top if name.lower() in FOLDERS}
    split_folders = named == top
    if len(named) > 1 and not split_folders:  # one alone may be a class: of trains
        raise ValueError(
            f"{root.resolve()} holds folders of splits ({', '.join(sorted(named))}) and beside them "
            f"{', '.join(sorted(top - named)[:5])}; move those into a split, or out of {root.name}"
        )
    entries = []
    for path in pictures:
        relative = path.relative_to(root)
        folders = list(relative.parts[:-1])
        split = FOLDERS[folders.pop(0).lower()] if split_folders else None
        label = folders[0] if folders else None
        entry = Entry(relative.as_posix(), path.read_bytes, split, label)
        entries.append(_with_captions(entry, said.pop(relative.as_posix(), [])))
    if said:
        raise ValueError(f"captions name {len(said)} files that are not in {root}, the first: {next(iter(said))}")
    labels = {entry.label for entry in entries} - {None}
    if len(labels) == 1:
        notes.append(f"one subfolder alone ({labels.pop()}) is no class: the pictures count as unlabeled")
        entries = [replace(entry, label=None) for entry in entries]
    return Source(entries, notes)


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _captions(root: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of captions.csv or captions.jsonl by path. Columns: path, and caption or question and answer."""
    said: dict[str, list[dict[str, str]]] = {}
    for file in (root / name for name in CAPTIONS):
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8-sig")
            lines = io.StringIO(text, newline="")
            rows = list(csv.DictReader(lines)) if file.suffix == ".csv" else [json.loads(x) for x in lines if x.strip()]
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
            raise ValueError(f"{file} cannot be read: {error}; it has to be UTF-8, a row a line") from None
        for number, row in enumerate(rows, start=1):
            if not row.get("path") or not (row.get("caption") or (row.get("question") and row.get("answer"))):
                raise ValueError(
                    f"{file}, row {number}: needs path, and caption or question and answer; given: {', '.join(row)}"
                )
            said.setdefault(row["path"], []).append(row)
    return said


def _with_captions(entry: Entry, rows: list[dict[str, str]]) -> Entry:
    captions = [row["caption"] for row in rows if row.get("caption")]
    asked = tuple((row["question"], row["answer"]) for row in rows if row.get("question"))
    asked += tuple((DESCRIBE, caption) for caption in captions)
    if entry.label is not None:
        asked += ((NAME, entry.label.replace("_", " ").replace("-", " ").lower()),)
    return replace(entry, caption=captions[0] if captions else None, questions=asked)
