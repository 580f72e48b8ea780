"""Which files of a folder are read, and what their folders say about them."""

import os
import shutil
from pathlib import Path

import pytest

from components.data import folders
from components.data.folders import read_folder, split_folders
from tests.conftest import draw


def paths(source) -> list[str]:
    return [entry.path for entry in source.entries]


def test_a_listing_is_sorted_by_folder_and_leaves_hidden_and_other_files_out(tmp_path):
    for name in ("b/1.png", "a/z.JPG", "a/sub/2.png", "a-b/3.tiff", "0.webp", ".hidden/4.png", "a/._5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "x.png").mkdir()
    (tmp_path / "x.png" / "6.png").touch()
    source = read_folder(tmp_path)
    assert paths(source) == ["0.webp", "a/sub/2.png", "a/z.JPG", "a-b/3.tiff", "b/1.png", "x.png/6.png"]
    assert [entry.label for entry in source.entries] == [None, "a", "a", "a-b", "b", "x.png"]
    assert source.notes == ["not read, as they are not images: 1 .txt; the first: a/notes.txt"]


def test_every_file_is_listed_with_one_call_per_folder(tmp_path, monkeypatch):
    """Listing is linear: there is no system call for each file, and no collection is built again for each."""
    for index in range(300):
        (tmp_path / f"{index:03d}.png").touch()
    calls = {"scandir": 0, "stat": 0}
    scandir, stat = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda *args: calls.update(scandir=calls["scandir"] + 1) or scandir(*args))
    monkeypatch.setattr(os, "stat", lambda *args, **kw: calls.update(stat=calls["stat"] + 1) or stat(*args, **kw))
    assert len(read_folder(tmp_path).entries) == 300
    assert calls["scandir"] == 1
    assert calls["stat"] < 10


def test_links_are_followed_but_not_in_circles(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    draw(elsewhere / "cats" / "1.png", 1)
    draw(elsewhere / "2.png", 2)
    draw(root / "dogs" / "3.png", 3)
    (root / "cats").symlink_to(elsewhere / "cats")
    (root / "dogs" / "2.png").symlink_to(elsewhere / "2.png")
    (root / "dogs" / "again").symlink_to(root)
    (elsewhere / "cats" / "self.d").symlink_to(elsewhere / "cats")
    (root / "dogs" / "loop").symlink_to("loop")
    source = read_folder(root)
    assert [(entry.path, entry.label) for entry in source.entries] == [
        ("cats/1.png", "cats"),
        ("dogs/2.png", "dogs"),
        ("dogs/3.png", "dogs"),
    ]
    assert source.entries[1].fetch() == (elsewhere / "2.png").read_bytes()
    assert source.notes[:2] == [
        "cats/self.d/ is the same folder as cats/: listed once",
        "dogs/again/ is the same folder as .: listed once",
    ]


def test_folders_that_link_to_each_other_are_listed_once(tmp_path):
    for name in "abcde":
        draw(tmp_path / name / f"{name}.png", ord(name))
        for other in set("abcde") - {name}:
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    source = read_folder(tmp_path)
    assert sorted(Path(entry.path).name for entry in source.entries) == [f"{name}.png" for name in "abcde"]
    assert len([note for note in source.notes if "listed once" in note]) == 20  # links beside the 5 folders


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for name in ("a/1.png", "b/2.png", "closed/3.png"):
        draw(tmp_path / name, len(name))
    scandir = os.scandir

    def failing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    source = read_folder(tmp_path)
    assert paths(source) == ["a/1.png", "b/2.png"]
    assert source.notes == ["closed/ cannot be listed (Permission denied): its images are left out"]


@pytest.mark.parametrize(
    ("tops", "splits"),
    [
        ("train test", {"train": "train", "test": "test"}),
        ("Training Testing", {"Training": "train", "Testing": "test"}),
        ("TRAIN valid Test", {"TRAIN": "train", "valid": "val", "Test": "test"}),
        ("train dev", {"train": "train", "dev": "val"}),
        ("train eval", {"train": "train", "eval": "test"}),
        ("train eval test", {"train": "train", "eval": "val", "test": "test"}),
        ("training validation evaluation", {"training": "train", "validation": "val", "evaluation": "test"}),
        ("train2017 val2017 test_images", {"train2017": "train", "val2017": "val", "test_images": "test"}),
        ("train", {"train": "train"}),
        ("test", {}),  # alone it is a folder like any other
        ("test hats", {}),  # one alone may be a class
        ("trains tests", {}),
        ("dev ops", {}),
    ],
)
def test_folders_that_are_called_like_splits_are_splits(tops, splits, tmp_path):
    assert split_folders(set(tops.split()), tmp_path) == splits


def test_names_of_splits_that_were_understood_are_noted(tmp_path):
    for name in ("Training/a/1.png", "Training/b/2.png", "eval/a/3.png", "eval/b/4.png"):
        draw(tmp_path / name, len(name))
    source = read_folder(tmp_path)
    assert [(entry.split, entry.label) for entry in source.entries] == [
        ("train", "a"),
        ("train", "b"),
        ("test", "a"),
        ("test", "b"),
    ]
    assert source.notes == ["folders read as splits: Training → train, eval → test"]


def test_folders_of_splits_have_nothing_beside_them(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "unsorted/d.png"):
        draw(tmp_path / name, len(name))
    with pytest.raises(ValueError, match=r"folders of splits \(test, train\) and beside them unsorted; move those"):
        read_folder(tmp_path)
    shutil.rmtree(tmp_path / "test")
    assert {entry.label for entry in read_folder(tmp_path).entries} == {"train", "unsorted"}  # one alone may be a class


def test_a_single_class_folder_is_not_a_class(tmp_path):
    for index in range(3):
        draw(tmp_path / "holiday" / f"{index}.png", index)
    source = read_folder(tmp_path)
    assert {entry.label for entry in source.entries} == {None}
    assert source.notes == ["one subfolder alone (holiday) is not a class: the images count as unlabeled"]


@pytest.mark.parametrize("top", ["photos", "eval"])
def test_a_folder_around_the_folders_is_passed_over(top, tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            draw(tmp_path / top / split / name / "0.png", len(split + name))
    source = read_folder(tmp_path)
    assert {(entry.path, entry.split, entry.label) for entry in source.entries} == {
        (f"{split}/{name}/0.png", split, name) for split in ("train", "test") for name in ("cat", "dog")
    }
    assert source.notes == [f"all images are in {top}, so that is what was read"]
    assert all(entry.fetch() for entry in source.entries)


def test_a_folder_without_images_says_what_it_has(tmp_path):
    (tmp_path / "1.nef").touch()
    with pytest.raises(ValueError, match=r"holds no image; looked for .jpg.* subfolders; it has 1 .nef"):
        read_folder(tmp_path)


def test_a_name_that_is_not_utf_8_is_escaped_and_meets_its_caption(tmp_path):
    draw(tmp_path / "1.png", 1)
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path) + b"/caf\xe9.png")  # noqa: PTH104
    (tmp_path / "captions.csv").write_text("path,caption\ncaf\u00e9.png,a bar\n", encoding="utf-8")
    (entry,) = read_folder(tmp_path).entries
    assert (entry.path, entry.caption) == (r"caf\xe9.png", "a bar")
    assert entry.fetch()[:4] == b"\x89PNG"
    assert folders.caption_key("a\\b.png") == folders.caption_key("./a/b.png") == "a/b.png"
