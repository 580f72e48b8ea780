"""Lists the images of a folder, with the split and the class that its subfolders name, and the tables beside them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from components.data import captions, labels
from components.data.entries import Entry, Source, labeled, with_questions
from components.data.images import Rejected
from components.progress import progress

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi"),
)
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
EVALUATION = ("eval", "evaluation")  # the test split, or the val split beside a folder that is called test
TABLES = (*captions.FILES, labels.FILE)  # at the top of the folder; they belong to what lies beside them
AFFIX = re.compile(r"[ _-]*(set|data|images|photos|split|(19|20)\d\d)$")  # train_set, val2017


@dataclass
class Listing:
    """Relative paths of images as the operating system spells them, in order, and what else was met on the way."""

    images: list[str] = field(default_factory=list)
    not_files: set[str] = field(default_factory=set)  # images that are broken links, pipes or devices
    other_suffixes: Counter[str] = field(default_factory=Counter)  # of files that are not images
    first_other: str = ""
    problems: list[str] = field(default_factory=list)  # folders that were left out


def read_folder(root: Path) -> Source:
    """Returns the entries of a folder: flat, class/…, split/… or split/class/…, and notes on how it was read.

    Raises ValueError if it has no images, or folders of splits and of something else side by side.
    """
    listing = list_images(root)
    if not listing.images:
        hint = f"; it has {_suffix_counts(listing.other_suffixes)}" if listing.other_suffixes else ""
        raise ValueError(
            f"{root.resolve()} holds no image; looked for {', '.join(IMAGE_SUFFIXES)} in it and its subfolders{hint}"
        )
    notes = [*listing.problems]
    if listing.other_suffixes:
        suffixes = _suffix_counts(listing.other_suffixes)
        notes.append(f"not read, as they are not images: {suffixes}; the first: {listing.first_other}")
    has_table = any((root / name).is_file() for name in TABLES)
    while not has_table and (folder := _only_folder(listing.images)):
        notes.append(f"all images are in {printable(folder)}, so that is what was read")
        root, prefix = root / folder, len(folder) + 1
        listing.images = [path[prefix:] for path in listing.images]
        listing.not_files = {path[prefix:] for path in listing.not_files}
        has_table = any((root / name).is_file() for name in TABLES)
    splits = split_folders({path.partition("/")[0] for path in listing.images}, root)
    if any(name != split for name, split in splits.items()):
        pairs = ", ".join(f"{printable(name)} → {split}" for name, split in sorted(splits.items()))
        notes.append(f"folders read as splits: {pairs}")
    return _source(root, listing, splits, notes)


def photo_file(entry: Entry) -> Path:
    """Returns the file of an entry that `read_folder` made."""
    assert isinstance(entry.fetch, partial)
    root, path = entry.fetch.args
    return Path(root) / path


def _source(root: Path, listing: Listing, splits: dict[str, str], notes: list[str]) -> Source:
    keys = [caption_key(path) for path in listing.images]
    texts = captions.read(root, set(keys), caption_key)
    table = labels.read(root, set(keys), caption_key, SPLIT_NAMES)
    entries = []
    for path, key in zip(listing.images, keys, strict=True):
        folders = path.split("/")[:-1]
        split = splits[folders.pop(0)] if splits else None
        row = table.photos.get(key, labels.PhotoLabels())
        names = row.labels if table.has_classes else map(printable, folders[:1])
        fetch = partial(_not_a_file if path in listing.not_files else _read_file, root, path)
        entries.append(labeled(Entry(printable(path), fetch, row.split or split, group=row.group), names))
    classes = {name for entry in entries for name in entry.labels}
    if len(classes) == 1 and not table.has_classes:
        notes = [*notes, f"one subfolder alone ({classes.pop()}) is not a class: the images count as unlabeled"]
        entries = [labeled(entry, ()) for entry in entries]
    entries = [with_questions(entry, texts.rows.get(key, ())) for entry, key in zip(entries, keys, strict=True)]
    notes = [*notes, *texts.notes, *_label_notes(table, entries)]
    return Source(entries, notes, texts.count, texts.rejected, table.count, table.rejected)


def _label_notes(table: labels.Labels, entries: list[Entry]) -> list[str]:
    """Returns what labels.csv changed, if there is one."""
    notes = []
    if table.has_classes:
        unlabeled = sum(not entry.labels for entry in entries)
        several = sum(len(entry.labels) > 1 for entry in entries)
        notes.append(f"{labels.FILE} names the classes, so that folders do not; {unlabeled} photos have no label there")
        if several:
            notes.append(
                f"{labels.FILE}: {several} photos have several labels, which are in the column labels of the manifest; "
                "adapt learns all of them, other stages that need one label leave these photos out"
            )
    return notes


def list_images(root: Path) -> Listing:
    """Lists `root` and its subfolders without hidden files. Links are followed, but not into a folder they lie in."""
    listing = Listing()
    for path, is_file in progress(_walk(root, "", {}, listing.problems), "list", unit=" files"):
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 (a Path per file takes longer than listing it)
        if suffix in IMAGE_SUFFIXES:
            listing.images.append(path)
            if not is_file:
                listing.not_files.add(path)
        elif path not in TABLES:
            listing.first_other = listing.first_other or printable(path)
            listing.other_suffixes[suffix] += 1
    return listing


def _walk(
    folder: Path, prefix: str, visited: dict[tuple[int, int], str], problems: list[str]
) -> Iterator[tuple[str, bool]]:
    """Yields the relative path of every file, in the order of the paths' parts, and whether it is a regular file.

    visited: the folders that were listed already, as device and inode, each with its path. Links may lead to one again,
    and links in a circle would never end.
    """
    try:
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        if key in visited:
            problems.append(f"{printable(prefix)} is the same folder as {printable(visited[key]) or '.'}: listed once")
            return
        with os.scandir(folder) as entries:
            items = sorted(entries, key=lambda item: item.name)
    except OSError as error:
        problems.append(f"{printable(prefix) or folder} cannot be listed ({error.strerror}): its images are left out")
        return
    visited[key] = prefix
    for item in items:
        if item.name.startswith("."):
            continue
        path = prefix + item.name
        is_folder, is_file = _kind(item)
        if is_folder:
            yield from _walk(folder / item.name, f"{path}/", visited, problems)
        else:
            yield path, is_file


def _kind(item: os.DirEntry[str]) -> tuple[bool, bool]:
    """Returns whether it is a folder, and whether it is a regular file, or a link to one; neither for a broken link."""
    try:
        return item.is_dir(), item.is_file()
    except OSError:  # a link to itself, a path that is too long
        return False, False


def _only_folder(paths: Iterable[str]) -> str | None:
    """Returns the only top folder if it has subfolders and is not one of training images."""
    tops = {path.partition("/")[0] for path in paths}
    if len(tops) > 1 or SPLIT_NAMES.get(_normalize_name(top := tops.pop())) == "train":
        return None
    return top if any(path.count("/") > 1 for path in paths) else None


def split_folders(tops: set[str], root: Path) -> dict[str, str]:
    """Returns the split that each top folder stands for, {} where the folders are classes or there are none.

    One such name alone beside others may be a class (of trains, say), and so may a lone folder unless it is "train".
    Raises ValueError if several splits and something else lie side by side.
    """
    names = {top: _normalize_name(top) for top in tops}
    evaluation = "val" if "test" in map(SPLIT_NAMES.get, names.values()) else "test"
    split_by_name = {**SPLIT_NAMES, **dict.fromkeys(EVALUATION, evaluation)}
    splits = {top: split_by_name[name] for top, name in names.items() if name in split_by_name}
    if len(splits) == len(tops):
        return splits if len(tops) > 1 or "train" in splits.values() else {}
    if len(splits) > 1:
        other_folders = ", ".join(printable(top) for top in sorted(tops - set(splits))[:5])
        raise ValueError(
            f"{root.resolve()} holds folders of splits ({', '.join(map(printable, sorted(splits)))}) and beside them "
            f"{other_folders}; move those into a split, or out of {root.name}"
        )
    return {}


def _normalize_name(name: str) -> str:
    return AFFIX.sub("", name.lower())


def printable(path: str) -> str:
    r"""Returns `path` as valid Unicode: a byte that is not UTF-8 is written as \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def caption_key(path: str) -> str:
    r"""Returns the spelling under which a file and the path in a captions file meet.

    Unicode is composed (macOS decomposes it), \ is /, and a file's name that is not UTF-8 is read as Latin-1.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        path = os.fsencode(path).decode("latin-1")
    return unicodedata.normalize("NFC", path).replace("\\", "/").removeprefix("./")


def _suffix_counts(suffixes: Counter[str]) -> str:
    common = [f"{count} {suffix or 'without a suffix'}" for suffix, count in suffixes.most_common(5)]
    return ", ".join([*common, *(["…"] if len(suffixes) > 5 else [])])


def _read_file(root: Path, path: str) -> bytes:
    return (root / path).read_bytes()


def _not_a_file(root: Path, path: str) -> bytes:
    link = (root / path).is_symlink()
    raise Rejected("unreadable", "a link to a file that is not there" if link else "not a regular file")
