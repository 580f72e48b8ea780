"""All labels of photos that have several are those of labels.csv, and one label a photo leaves nothing behind."""

from pathlib import Path

import numpy as np
import pytest
import torch

from components.data.fields import AllLabels, make_batch
from components.data.label_sets import label_sets
from components.data.photos import Photos
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.conftest import draw

TABLE = {
    0: ("train", "cat|dog"),
    1: ("train", "bird"),
    2: ("train", ""),
    3: ("test", "dog|horse"),
    4: ("test", "horse"),
    5: ("val", "bird|cat|dog"),
}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    root = tmp_path_factory.mktemp("album")
    lines = ["path,label,split"]
    for index in range(20):
        draw(root / "photos" / f"{index:02d}.png", index)
        split, names = TABLE.get(index, ("train", "cat"))
        lines.append(f"{index:02d}.png,{names},{split}")
    (root / "photos" / "labels.csv").write_text("\n".join(lines))
    settings = ResolvedConfig(data=DataConfig(source=str(root / "photos"), size=32), prepare=PrepareConfig())
    prepare(settings, root / "out", root)
    return Photos(root / "out")


def test_each_photo_shows_its_labels_that_training_photos_have(album: Photos) -> None:
    assert album.label_sets
    assert album.label_sets.classes == ("bird", "cat", "dog")
    names = [Path(path).stem for path in album.manifest["path"]]
    shown = album.label_sets.matrix(np.arange(20))
    for name, row, is_labeled in zip(names, shown, album.label_sets.labeled(), strict=True):
        expected = set(TABLE.get(int(name), ("", "cat"))[1].split("|")) & {"bird", "cat", "dog"}
        assert {album.label_sets.classes[place] for place in row.nonzero()[:, 0]} == expected
        assert is_labeled == bool(expected)  # 4.png has a label that no training photo has
    rows = np.array([7, 3, 7, 0])
    assert torch.equal(album.label_sets.matrix(rows), shown[rows])


def test_a_batch_has_the_labels_of_its_photos(album: Photos) -> None:
    assert album.label_sets
    field, rows = AllLabels(3), np.array([5, 0, 11])
    (labels,) = make_batch(album, rows, (field,), 0, 0)
    assert (labels.dtype, tuple(labels.shape[1:])) == (field.dtype, field.shape)
    assert torch.equal(labels, album.label_sets.matrix(rows))


def test_photos_with_one_label_at_most_have_no_label_sets(photos: Photos) -> None:
    assert photos.label_sets is None
    with np.load(photos.folder / "index.npz") as index:
        assert "all_labels" not in index
    assert label_sets([["a"], ["a", "b"], []], [True, False, True]) is None  # several in test alone
    assert label_sets([], []) is None
