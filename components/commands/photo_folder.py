"""Describes a folder of photos: how many, how large, with which labels and captions. Only headers of files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from components.data.entries import Entry
from components.data.folders import photo_file, read_folder
from components.data.images import formats, pillow_limit
from components.stages.prepare import DataConfig, PrepareConfig

FEWEST = 20  # photos
SAMPLE = 64  # files whose headers are read, at equal distances in the list


@dataclass(frozen=True)
class PhotoFolder:
    """What a folder of photos holds, as far as it is known before any photo is decoded.

    train, val, test: photos; expected numbers where the folder has no such split, so that photos are drawn for it.
    drawn: the splits that are drawn. side: shorter side in pixels, the median of the sample.
    classes: of photos that have one label. multi_labeled: photos with several labels.
    questions: of the training photos, from labels and captions. answer_length: of the longest answers, in characters.
    """

    folder: Path
    train: int
    val: int
    test: int
    side: int
    megapixels: float
    drawn: tuple[str, ...] = ()
    classes: int = 0
    multi_labeled: int = 0
    captioned: int = 0
    questions: int = 0
    answer_length: int = 0

    @property
    def photos(self) -> int:
        return self.train + self.val + self.test


def describe_folder(path: Path) -> tuple[PhotoFolder, list[Path]]:
    """Returns what is known of the folder, and the files of the sample that can be opened.

    Raises ValueError, in one sentence, if it is no folder, or if its photos are too few or cannot be opened.
    """
    folder = path.expanduser().absolute()
    if folder.is_file():
        raise ValueError(f"{folder} is a file; the folder that holds the photos is needed, perhaps {folder.parent}")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if not str(folder).isprintable():
        raise ValueError(f"the name of {folder!s:a} cannot be written to params.yaml; rename the folder")
    entries = read_folder(folder).entries
    if len(entries) < FEWEST:
        photos = "1 photo" if len(entries) == 1 else f"{len(entries)} photos"
        raise ValueError(f"{folder} holds {photos}; at least {FEWEST} are needed, and a thousand are still few")
    files, sizes = _sizes(folder, [photo_file(entry) for entry in entries])
    return _describe(folder, entries, sizes), files


def spaced(files: Sequence[Path], count: int) -> list[Path]:
    """Returns at most `count` of the files, at equal distances in the list."""
    return [files[index * len(files) // count] for index in range(count)] if len(files) > count else list(files)


def _sizes(folder: Path, files: Sequence[Path]) -> tuple[list[Path], list[tuple[int, int]]]:
    """Returns the files of a sample that can be opened, and the width and height of each, read from its header."""
    sample = spaced(files, SAMPLE)
    sizes, failures = {}, {}
    with pillow_limit(PrepareConfig().max_pixels):
        for file in sample:
            try:
                with file.open("rb") as content:
                    header = content.read(256)
                with Image.open(file, formats=formats(header)) as image:
                    sizes[file] = image.size
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                failures[file] = str(error).partition("\n")[0]
    allowed = DataConfig(source="", size=8).max_rejected
    if len(failures) > allowed * len(sample):
        why = next(iter(failures.values()))
        raise ValueError(
            f"{len(failures)} of {len(sample)} photos of {folder} that were tried cannot be opened, the first: {why}; "
            "convert them to JPEG, or move them elsewhere"
        )
    return list(sizes), list(sizes.values())


def _describe(folder: Path, entries: Sequence[Entry], sizes: Sequence[tuple[int, int]]) -> PhotoFolder:
    of_split = {split: [entry for entry in entries if entry.split == split] for split in ("val", "test")}
    rest = [entry for entry in entries if entry.split not in of_split]
    config = PrepareConfig()
    shares = {"val": config.val_share, "test": config.test_share}
    drawn_shares = {split: share for split, share in shares.items() if not of_split[split]}
    counts = {split: len(of_split[split]) or round(len(rest) * drawn_shares[split]) for split in shares}
    train_share = 1 - sum(drawn_shares.values())
    answers = [len(answer) for entry in entries for _, answer in entry.questions]
    return PhotoFolder(
        folder,
        train=len(entries) - sum(counts.values()),
        **counts,
        side=int(median(min(size) for size in sizes)),
        megapixels=median(width * height for width, height in sizes) / 1e6,
        drawn=tuple(drawn_shares),
        classes=len({entry.label for entry in entries} - {None}),
        multi_labeled=sum(len(entry.labels) > 1 for entry in entries),
        captioned=sum(entry.caption is not None for entry in entries),
        questions=int(train_share * sum(len(entry.questions) for entry in rest)),
        answer_length=sorted(answers)[len(answers) * 9 // 10] if answers else 0,
    )
