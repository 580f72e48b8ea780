"""Turns a data source (a folder, generated scenes, a torchvision data set) into one list of entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from components.data import folders, scenes
from components.data.entries import DESCRIBE, Entry, Source, labeled, with_questions

# torchvision's classes, and which of their splits become our splits
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


def read_source(source: str, count: int, seed: int, downloads: Path) -> Source:
    """Returns the entries of `source`: scenes, the name of a torchvision data set, or a folder.

    count, seed: of the scenes. downloads: where torchvision's data sets are kept.
    Raises ValueError, with what is allowed, if `source` is none of them or has no images.
    """
    folder = source_folder(source)
    if folder:
        return folders.read_folder(folder)
    if source == "scenes":
        return Source(list(_scenes(count, seed)))
    return Source(list(_torchvision(source, downloads)))


def source_folder(source: str) -> Path | None:
    """Returns the folder that is named, None for scenes and torchvision's data sets. Raises ValueError otherwise."""
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
            image, questions = Image.fromarray(scene.pixels), (*scene.questions, (DESCRIBE, scene.caption))
            entry = Entry(f"scenes/{index:05d}.png", image.copy, caption=scene.caption, questions=questions)
            yield labeled(replace(entry, truth=scene.truth), [scene.label])


def _torchvision(name: str, root: Path) -> Iterator[Entry]:
    from torchvision import datasets

    kind, splits = DATASETS[name]
    for split, arguments in splits.items():
        try:
            dataset = getattr(datasets, kind)(root=str(root), download=True, **arguments)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"data.source {name} could not be downloaded to {root} ({error}). It needs internet once; without it, "
                "unpack the images yourself and give their folder, or use scenes"
            ) from error
        classes = getattr(dataset, "classes", None)
        for index, number in enumerate(_class_numbers(dataset)):
            label = None if number < 0 else classes[number] if classes else str(number)  # STL-10's unlabeled are -1
            label = label[0] if isinstance(label, tuple) else label  # Imagenette's classes have several names
            path = f"{name}/{split or 'all'}/{index:06d}"
            entry = Entry(path, partial(_image, dataset, index), split or None)
            yield with_questions(labeled(entry, [label] if label else []))


def _class_numbers(dataset: Any) -> Iterable[int]:
    """Returns the class number of each picture from torchvision's own lists, since indexing decodes the picture too."""
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            return map(int, getattr(dataset, name))
    if hasattr(dataset, "_samples"):
        return (number for _, number in dataset._samples)
    return (int(dataset[index][1]) for index in range(len(dataset)))


def _image(dataset: list[tuple[Image.Image, int]], index: int) -> Image.Image:
    return dataset[index][0]
