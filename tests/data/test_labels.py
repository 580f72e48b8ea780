"""labels.csv: classes, groups and splits beside the photos, and rows that cannot be used."""

import json

import polars as pl
import pytest

from components.data.folders import read_folder
from components.data.photos import Photos
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.conftest import draw


@pytest.fixture
def album(tmp_path):
    for index in range(30):
        draw(tmp_path / "album" / f"{index:02d}.png", index)
    return tmp_path / "album"


def run(album, out, **settings):
    config = ResolvedConfig(data=DataConfig(source=str(album), size=32, **settings), prepare=PrepareConfig())
    return prepare(config, out, out)


def entries(folder, table: str):
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    source = read_folder(folder)
    return {entry.path: entry for entry in source.entries}, source


def test_labels_stand_in_one_cell_or_in_several_rows(album):
    table = "path,label\n00.png,cat\n01.png,dog | cat\n02.png,cat\n02.png,dog\n03.png,\n04.png,cat|cat\n"
    photos, source = entries(album, table)
    assert [photos[f"{index:02d}.png"].labels for index in range(6)] == [
        ("cat",), ("cat", "dog"), ("cat", "dog"), (), ("cat",), (),
    ]  # fmt: skip
    assert [photos[f"{index:02d}.png"].label for index in range(5)] == ["cat", None, None, None, "cat"]
    assert ("What is in the picture?", "cat") in photos["00.png"].questions
    assert photos["01.png"].questions == ()
    assert source.notes == [
        "labels.csv names the classes, so that folders do not; 26 photos have no label there",
        "labels.csv: 2 photos have several labels, which are in the column labels of the manifest; adapt learns "
        "all of them, other stages that need one label leave these photos out",
    ]


def test_groups_and_splits_are_read_and_names_of_splits_are_those_that_people_use(album):
    photos, source = entries(
        album, "path;group;split\r\n00.png;burst 1;Validation\r\n01.png;burst 1;\r\n02.png;;test\r\n"
    )
    assert [(photos[name].group, photos[name].split) for name in ("00.png", "01.png", "02.png", "03.png")] == [
        ("burst 1", "val"),
        ("burst 1", None),
        (None, "test"),
        (None, None),
    ]
    assert source.notes == []


def test_without_a_column_label_the_folders_are_the_classes(tmp_path):
    for index in range(4):
        draw(tmp_path / "ab"[index % 2] / f"{index}.png", index)
    photos, _ = entries(tmp_path, "path,group\na/0.png,x\n")
    assert [photos[path].label for path in ("a/0.png", "b/1.png")] == ["a", "b"]
    photos, _ = entries(tmp_path, "path,label\na/0.png,x\n")
    assert [photos[path].label for path in ("a/0.png", "b/1.png")] == ["x", None]


@pytest.mark.parametrize(
    ("rows", "line", "why"),
    [
        ("99.png,cat,,", 2, "there is no image '99.png' in the folder"),
        (",cat,,", 2, "has no path; it has: label"),
        (
            "00.png,cat,,holdout",
            2,
            "there is no split 'holdout'; allowed: train, val, test, or nothing for a split that is",
        ),
        ("00.png,cat,a,\n00.png,dog,b,", 3, "the group is 'b', and in line 2 it is 'a'"),
        ("00.png,cat,,val\n00.png,dog,,test", 3, "the split is 'test', and in line 2 it is 'val'"),
        ("00.png,cat, dog,,val", 2, "5 cells for the columns path, label, group, split; put quotes"),
        ('00.png,"cat,,\n01.png,dog,,', 2, "a quote is opened and not closed"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(rows, line, why, album):
    photos, source = entries(album, f"path,label,group,split\n{rows}\n")
    (bad,) = source.bad_label_rows
    assert (bad.file, bad.line) == ("labels.csv", line)
    assert bad.why.startswith(why)
    assert source.label_rows == rows.count("\n") + 1
    assert len(photos) == 30


def test_a_file_that_does_not_name_its_columns_is_refused(album):
    with pytest.raises(ValueError, match=r"labels.csv, line 1: .* path, and one or more of label, group and split"):
        entries(album, "file,class\n00.png,cat\n")


def test_bad_rows_are_counted_and_too_many_stop_the_stage(album, tmp_path):
    rows = [f"{index:02d}.png,{'ab'[index % 2]}" for index in range(28)]
    (album / "labels.csv").write_text("\n".join(["path,label", *rows, "missing.png,a"]))
    report = run(album, tmp_path / "out")
    assert report["labels"] == {"rows": 29, "rejected": 1}
    assert report["unlabeled"] == 2
    assert "  labels.csv, line 30: there is no image 'missing.png' in the folder" in report["warnings"]
    assert json.loads((tmp_path / "out" / "labels_rejected.jsonl").read_text())["line"] == 30
    with pytest.raises(ValueError, match=r"more than data.max_rejected 0.01 of the rows of labels[^$]*line 30: there"):
        run(album, tmp_path / "out", max_rejected=0.01)


def test_the_manifest_has_all_labels_and_no_group_is_in_two_splits(album, tmp_path):
    rows = [f"{index:02d}.png,{'a|b' if index % 5 == 0 else 'ab'[index % 2]},g{index // 5}" for index in range(30)]
    (album / "labels.csv").write_text("\n".join(["path,label,group", *rows]))
    report = run(album, tmp_path / "out")
    manifest = Photos(tmp_path / "out").manifest
    assert manifest.group_by("group").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 6
    assert manifest["split"].n_unique() > 1
    several = manifest.filter(pl.col("labels").list.len() > 1)
    assert several["labels"].to_list() == [["a", "b"]] * 6
    assert several["label"].null_count() == 6
    assert report["several_labels"]["photos"] == 6
    assert sum(report["several_labels"]["labels"]["a"].values()) == 6
    assert (report["groups"], report["unlabeled"]) == (6, 0)
    single = manifest.filter(pl.col("labels").list.len() == 1)
    assert single["labels"].list.first().to_list() == single["label"].to_list()
    assert len(Photos(tmp_path / "out").rows("train", "val", "test", labeled=True)) == 24


def test_splits_of_the_file_are_kept_and_a_group_in_two_of_them_is_a_leak(album, tmp_path):
    splits = ["test"] * 6 + ["val"] * 4 + ["train"] * 20
    rows = [f"{index:02d}.png,{'g' if index in (0, 7, 12) else ''},{split}" for index, split in enumerate(splits)]
    (album / "labels.csv").write_text("\n".join(["path,group,split", *rows]))
    report = run(album, tmp_path / "out")
    assert report["splits"] == {"train": 19, "test": 6, "val": 3}
    rejected = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert [(line["path"], line["kind"], line["why"]) for line in rejected] == [
        (name, "leak", "of one group (g) with 00.png, which stays in test") for name in ("07.png", "12.png")
    ]
