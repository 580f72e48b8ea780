"""Scenes, folders and torchvision's data sets become entries; for anything else the error says what is allowed."""

import io

import numpy as np
import pytest
from PIL import Image

from components.data.entries import NAME
from components.data.sources import DATASETS, read_source


@pytest.mark.parametrize(("name", "message"), [("nowhere", "allowed: a folder"), (".", "holds no image")])
def test_an_unknown_source_is_refused_with_what_is_allowed(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_source(name, 0, 0, tmp_path)


def test_a_torchvision_data_set_is_read_and_its_absence_explained(tmp_path, monkeypatch):
    from torchvision import datasets

    class Fake:
        classes = ("cat", ("dog", "hound"))

        def __init__(self, root, download, train):
            self.pictures = [(Image.open(io.BytesIO(_png(index))), index % 2) for index in range(4 if train else 2)]

        def __len__(self):
            return len(self.pictures)

        def __getitem__(self, index):
            return self.pictures[index]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    entries = read_source("cifar10", 0, 0, tmp_path).entries
    assert [(entry.split, entry.label) for entry in entries] == [("train", "cat"), ("train", "dog")] * 2 + [
        ("test", "cat"),
        ("test", "dog"),
    ]
    assert entries[0].fetch().size == (8, 8)
    assert entries[0].questions == ((NAME, "cat"),)  # a label is something to ask about

    def offline(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", offline)
    with pytest.raises(ValueError, match=r"cifar10 could not be downloaded.*no route to host.*needs internet once"):
        read_source("cifar10", 0, 0, tmp_path)


@pytest.mark.parametrize(
    ("name", "splits", "folder"),
    [
        ("eurosat", [None], "eurosat/2750"),  # of ImageFolder's kind: targets
        ("dtd", ["train", "val", "test"], "dtd/dtd/images"),  # _labels
        ("imagenette", ["train", "test"], "imagenette2"),  # _samples
    ],
)
def test_each_picture_of_a_torchvision_data_set_is_decoded_once(name, splits, folder, tmp_path, monkeypatch):
    """torchvision's own classes on a few files in their layout."""
    classes = ("n01440764", "n02102040") if name == "imagenette" else ("banded", "dotted")
    places = {"imagenette": ("train", "val")}.get(name, ("",))
    for number, (place, kind) in enumerate((place, kind) for place in places for kind in classes):
        for index in range(3 if name == "dtd" else 1):
            file = tmp_path / folder / place / kind / f"{index}.JPEG".lower()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_png(number))
    if name == "dtd":
        (tmp_path / "dtd/dtd/labels").mkdir()
        for index, split in enumerate(splits):
            lines = "".join(f"{kind}/{index}.jpeg\n" for kind in classes)
            (tmp_path / f"dtd/dtd/labels/{split}1.txt").write_text(lines)
    decoded, convert = [], Image.Image.convert  # which each of torchvision's loaders calls

    def counted(image, *args, **kwargs):
        decoded.append(image)
        return convert(image, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "convert", counted)
    entries = read_source(name, 0, 0, tmp_path).entries
    assert not decoded
    labels = ("tench", "English springer") if name == "imagenette" else classes
    assert [(entry.split, entry.label) for entry in entries] == [(s, label) for s in splits for label in labels]
    assert all(entry.fetch().size == (8, 8) for entry in entries)
    assert len(decoded) == len(entries)


def test_every_named_data_set_is_torchvisions():
    from torchvision import datasets

    assert all(hasattr(datasets, kind) for kind, _ in DATASETS.values())


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()
