"""What `prepare` finds wrong with photos that can be read, and how it keeps near-duplicates out of different splits."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from benchmarks.hygiene import COPIES, find_issues, plant, scores
from components.data import scenes
from components.data.photos import Photos
from components.data.quality import LIMITS, issues, measure
from components.data.summary import issue_lines
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare


def scene(index: int) -> Image.Image:
    return Image.fromarray(scenes.draw(5, index).pixels)


def run(source: Path, out: Path, **settings):
    settings = {"max_rejected": 0.5, **settings}
    data = {name: settings.pop(name) for name in ("max_rejected", "jpeg_quality") if name in settings}
    config = ResolvedConfig(
        data=DataConfig(source=str(source), size=64, **data), prepare=PrepareConfig(**{"test_share": 0.3, **settings})
    )
    return prepare(config, out, out)


def test_what_was_planted_is_found_and_little_else(tmp_path):
    """benchmarks/hygiene.py does it with 500 pictures."""
    planted = plant([scene(index) for index in range(100)], tmp_path / "in", 6)
    rows = scores(find_issues(tmp_path / "in", tmp_path / "out", 64), planted)
    assert len(rows) == 6
    assert all(hits >= (4 if sort == "cropped" else 5) for sort, _, hits, _ in rows), rows
    assert all(wrong <= 1 for _, _, _, wrong in rows), rows
    manifest = Photos(tmp_path / "out").manifest
    split_of = dict(manifest.select("path", "split").iter_rows())
    for path, other in (
        pl.read_csv(tmp_path / "out" / "issues.csv").drop_nulls("other").select("path", "other").iter_rows()
    ):
        assert split_of[path] == split_of[other]


def test_near_duplicates_that_were_drawn_apart_are_moved_and_counted(tmp_path):
    for index in range(40):
        scene(index).save((tmp_path / "in").mkdir(exist_ok=True) or tmp_path / "in" / f"{index:02d}.png")
    for index in range(12):
        scene(index).save(tmp_path / "in" / f"{index:02d}_copy.jpg", quality=80)
    apart = run(tmp_path / "in", tmp_path / "apart", near_duplicates=False)
    report = run(tmp_path / "in", tmp_path / "out")
    before, after = (
        dict(Photos(tmp_path / name).manifest.select("path", "split").iter_rows()) for name in ("apart", "out")
    )
    assert apart["near_duplicates"] == {"groups": 0, "photos": 0}
    assert any(before[f"{index:02d}.png"] != before[f"{index:02d}_copy.jpg"] for index in range(12))
    assert all(after[f"{index:02d}.png"] == after[f"{index:02d}_copy.jpg"] for index in range(12))
    moved = [path for path in after if after[path] != before[path]]
    assert report["near_duplicates"] == {"groups": 12, "photos": 24}
    assert report["together"] == {"moved": len(moved), "left_out": 0}
    assert {path[:2] for path in moved} <= {f"{index:02d}" for index in range(12)}
    assert report["used"] == 52
    assert "photos to look at, listed in issues.csv: 24 near duplicate" in issue_lines(report)[0]
    assert f"{len(moved)} photos were drawn together with others" in issue_lines(report)[1]
    files = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert files["issues"]["near_duplicate"]["count"] == 24
    assert (
        files["splits"] == report["splits"] == dict(pl.Series(list(after.values())).value_counts(sort=True).iter_rows())
    )


@pytest.mark.parametrize("jpeg_quality", [None, 90])
def test_a_near_duplicate_of_a_test_photo_is_left_out_of_train(jpeg_quality, tmp_path):
    for index in range(30):
        split = "test" if index < 8 else "train"
        file = tmp_path / "in" / split / "ab"[index % 2] / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        scene(index).save(file)
    for index in (2, 12):
        scene(index).save(tmp_path / "in" / "train" / "a" / f"{index:02d}_copy.jpg", quality=80)
    (tmp_path / "in" / "captions.csv").write_text(
        "path,caption\ntrain/a/02_copy.jpg,lost\ntrain/a/12_copy.jpg,kept\ntrain/b/29.png,last\n"
    )
    report = run(tmp_path / "in", tmp_path / "out", jpeg_quality=jpeg_quality)
    (rejected,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert rejected == {
        "path": "train/a/02_copy.jpg",
        "kind": "leak",
        "why": "nearly the same picture as test/a/02.png, which stays in test",
    }
    assert (report["used"], report["rejected"]) == (31, {"leak": 1})
    assert report["together"]["left_out"] == 1
    photos = Photos(tmp_path / "out")
    paths = photos.manifest["path"].to_list()
    for row, path in enumerate(paths):  # the pixels of the others are still their own
        original = np.asarray(scene(int(Path(path).name[:2])), int)
        assert np.abs(photos[row].permute(1, 2, 0).numpy() - original).mean() < 15, path
    questions = {(paths[row], answer) for row, _, answer in photos.questions("train", "val").iter_rows()}
    assert ("train/a/12_copy.jpg", "kept") in questions
    assert ("train/b/29.png", "last") in questions
    assert "lost" not in {answer for _, answer in questions}


def measures(pixels: np.ndarray, size: int = 64):
    gray = Image.fromarray(pixels.astype(np.uint8))
    return measure(gray, gray.width, gray.height, size)


def test_each_kind_of_issue_is_named_by_its_measure():
    random = np.random.default_rng(0)
    checks = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((4, 4))) * 120 + 60
    good = checks + random.normal(0, 4, checks.shape)
    assert issues(measures(good)) == {}
    ramp = np.add.outer(np.arange(64), np.arange(64)) * 1.5 + 20
    assert list(issues(measures(ramp))) == ["blurred"]
    assert list(issues(measures(good * 0.2))) == ["dark"]
    assert list(issues(measures(random.normal(246, 3, good.shape).clip(0, 255)))) == ["bright"]
    assert list(issues(measures(np.full((64, 64), 9)))) == ["blank"]  # not dark and blurred too
    assert list(issues(measures(np.tile(good, (1, 4))))) == ["aspect"]
    assert list(issues(measures(good, size=200))) == ["tiny"]
    wide = measures(np.tile(good, (1, 4)))
    assert (wide.aspect, wide.side) == (4, 1)
    assert issues(wide)["aspect"] == 4


def test_a_photo_of_low_contrast_is_not_blurred_for_that():
    random = np.random.default_rng(1)
    good = random.normal(120, 40, (64, 64)).clip(0, 255)
    faint = 110 + good / 10
    assert measures(good).sharpness == pytest.approx(measures(faint).sharpness, rel=0.1)  # gray values are rounded
    assert set(LIMITS) == {"blurred", "dark", "bright", "blank", "aspect", "tiny"}
    assert len(COPIES) == 4
