"""Classify photos with the classifier of the stage `adapt`, and print the probability of each class."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from components.adapters.saved import FEW, check_key, load_classifier
from components.commands import cli
from components.commands.one_photo import open_photo, photo_files, prepare_settings
from components.data.photos import as_square
from components.stages.exit_code import exit_code

BATCH = 64


@dataclass(frozen=True)
class Folders:
    """adapter: written by adapt; backbone: by pretrain, or None: that of another project; data: by prepare, or None."""

    adapter: Path
    backbone: Path | None
    data: Path | None


def adapter_folders(adapter: Path | None) -> Folders:
    """Returns the folders of dvc.yaml, or of an adapter that is given, whose backbone and photos need not be here."""
    stage_folders = cli.folders("adapt")
    if adapter is None or adapter.resolve() == stage_folders["out"].resolve():
        return Folders(stage_folders["out"], stage_folders["backbone"], stage_folders["data"])
    return Folders(adapter, None, None)


def check_adapter(folders: Folders) -> None:
    """Raises ValueError if the folder holds no classifier, if a file of it was replaced, or if the backbone was."""
    metrics = folders.adapter / "metrics.json"
    if metrics.is_file() and (why := json.loads(metrics.read_text(encoding="utf-8")).get("skipped")):
        raise ValueError(f"{folders.adapter} holds no classifier: {why}")
    check_key(folders.adapter, folders.backbone / "backbone" if folders.backbone else None)


def classify(files: Sequence[Path], k: int | None, folders: Folders) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Yields each photo with its most probable classes and their probabilities, best first; k: see `likely`.

    A photo is opened as prepare does it. Files that are no photos are named and left out.
    Raises ValueError if the classifier cannot be used, or if no file can.
    """
    check_adapter(folders)
    classifier = load_classifier(folders.adapter / "model")
    settings, count = prepare_settings(folders.data, classifier.size), 0
    for start in range(0, len(files), BATCH):
        squares = {}
        for file in files[start : start + BATCH]:
            try:
                photo = open_photo(file, settings)
            except ValueError as error:
                print(f"left out: {error}", file=sys.stderr)
            else:
                squares[file] = as_square(photo, classifier.size, classifier.square)
        if squares:
            yield from zip(squares, classifier.likely(torch.stack(list(squares.values())), k), strict=True)
        count += len(squares)
    if not count:
        raise ValueError("no photo to classify; give a file, or a folder of photos")


def main() -> None:
    parser = ArgumentParser(prog="selfsight classify", description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", help="photos, or folders of photos")
    k_help = (
        f"how many classes to print for each photo (default: {FEW}, or all above 50 %% if photos have several labels)"
    )
    parser.add_argument("--k", type=int, help=k_help)
    parser.add_argument("--adapter", type=Path, help="folder written by adapt (default: as in dvc.yaml)")
    args = parser.parse_args()
    with exit_code("classify", parser):
        if args.k is not None and args.k < 1:
            raise ValueError(f"--k is {args.k}; allowed: 1 or more")
        for file, classes in classify(photo_files(args.photos), args.k, adapter_folders(args.adapter)):
            print(file, *(f"  {value:6.1%}  {name}" for name, value in classes), sep="\n")


if __name__ == "__main__":
    main()
