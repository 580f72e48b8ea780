"""Odd files of every kind go in; every rejection is explained, and all good photos are packed."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from components.data.photos import Photos
from components.data.summary import bit_depth_warnings
from components.stages import prepare as prepare_stage
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.conftest import draw

GOOD = 200


def run(source: Path, out: Path, *, max_rejected: float = 0.1, jpeg_quality: int | None = None, **settings):
    data = DataConfig(source=str(source), size=32, max_rejected=max_rejected, jpeg_quality=jpeg_quality)
    config = ResolvedConfig(data=data, prepare=PrepareConfig(**settings))
    return prepare(config, out, out / "downloads")


def rejections(out: Path) -> dict[str, dict[str, str]]:
    """Lines of rejected.jsonl by the file's path."""
    return {line["path"]: line for line in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())}


def add_odd_files(root: Path) -> dict[str, str | None]:
    """Adds twenty odd files: name -> the kind of its rejection, None if it must be used."""
    train, test = root / "train" / "a", root / "test" / "a"
    whole = draw(root / "whole.jpg", 10_001, (300, 200)).read_bytes()
    (root / "whole.jpg").unlink()
    (train / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "header_only.jpg").write_bytes(whole[:40])
    (train / "zero.png").write_bytes(b"")
    (train / "text.jpg").write_text("a letter, not a picture")
    (train / "page.png").write_text("<html></html>")
    broken = draw(train / "broken.png", 10_002).read_bytes()
    (train / "broken.png").write_bytes(broken[:60] + b"\0" * 40 + broken[100:])
    Image.new("L", (12_000, 12_000)).save(train / "bomb.png")
    Image.new("RGB", (900, 10)).save(train / "stripe.png")
    Image.new("RGB", (4, 4)).save(train / "dot.png")
    Image.fromarray(np.ones((20, 20), np.float32)).save(train / "float.tif")
    (train / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    shutil.copy(train / "000.png", train / "copy_of_000.png")
    shutil.copy(test / "180.png", train / "leak_of_180.png")
    Image.open(train / "002.png").save(train / "same_pixels_as_002.bmp")
    kinds: dict[str, str | None] = {
        "truncated.jpg": "broken",
        "header_only.jpg": "broken",
        "zero.png": "empty",
        "text.jpg": "no image",
        "page.png": "no image",
        "broken.png": "broken",
        "bomb.png": "bomb",
        "stripe.png": "aspect",
        "dot.png": "small",
        "float.tif": "range",
        "phone.heic": "broken",
        "copy_of_000.png": "duplicate",
        "leak_of_180.png": "leak",
        "same_pixels_as_002.bmp": "duplicate",
    }
    image = Image.open(draw(train / "image.png", 10_003, (60, 40)))
    (train / "image.png").unlink()
    image.convert("CMYK").save(train / "cmyk.jpg")
    deep = (np.asarray(image.convert("L")).astype(np.uint16) * 257)[::-1]
    Image.fromarray(deep).save(train / "sixteen.png")
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    turned.save(train / "turned.jpg", exif=turned.getexif())
    image.rotate(90).convert("P").save(train / "palette.png")
    image.rotate(180).save(train / "animated.gif", save_all=True, append_images=[image])
    clear = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    clear.save(train / "clear.png")
    return kinds | dict.fromkeys(
        ("cmyk.jpg", "sixteen.png", "turned.jpg", "palette.png", "animated.gif", "clear.png"), None
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    root, out = tmp_path_factory.mktemp("odd"), tmp_path_factory.mktemp("out")
    for index in range(GOOD):
        split, label = ("test" if index >= 160 else "train"), "ab"[index % 2]
        draw(root / split / label / f"{index:03d}.png", index)
    kinds = add_odd_files(root)
    return root, out, kinds, run(root, out, max_rejected=0.2)


def test_twenty_odd_files_are_told_from_two_hundred_good_ones(odd):
    _, out, kinds, summary = odd
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(kinds) == 20
    actual = {Path(line["path"]).name: line["kind"] for line in rejected}
    assert actual == {name: kind for name, kind in kinds.items() if kind}
    assert all(line["why"] for line in rejected)
    assert summary["used"] == GOOD + sum(kind is None for kind in kinds.values())
    assert sum(summary["rejected"].values()) == len(rejected)


def test_good_photos_are_packed_as_they_are(odd):
    root, out, _, _ = odd
    photos = Photos(out)
    table = photos.manifest
    assert table.filter(pl.col("path").str.contains(r"/\d{3}\.png$")).height == GOOD
    for row in range(0, len(photos), 17):
        path = table["path"][row]
        if path.endswith("png") and Path(path).stem.isdigit():
            expected = Image.open(root / path).convert("RGB").resize((32, 42))
            assert np.abs(photos[row].permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).mean() < 2


def test_a_leak_stays_where_we_measure_and_a_duplicate_says_of_what(odd):
    _, out, _, _ = odd
    why = {line["path"]: line["why"] for line in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())}
    assert why["train/a/leak_of_180.png"] == "the same picture as test/a/180.png, which stays in test"
    assert why["train/a/copy_of_000.png"] == "the same picture as train/a/000.png"
    assert "train/b/001.png" not in why
    table = Photos(out).manifest
    assert table.filter(pl.col("path") == "test/a/180.png")["split"].item() == "test"


def test_odd_modes_are_converted_and_counted(odd):
    root, out, _, summary = odd
    photos = Photos(out)
    rows = {Path(path).name: row for row, path in enumerate(photos.manifest["path"])}
    assert summary["converted"] == {
        "converted from P": 2,
        "converted from CMYK": 1,
        "converted from I;16": 1,
        "turned upright by EXIF": 1,
        "animated: first frame taken": 1,
        "converted from RGBA": 1,
    }
    turned = photos.manifest.row(rows["turned.jpg"], named=True)
    assert (turned["width"], turned["height"]) == (40, 60)  # stored 60 × 40
    assert photos[rows["turned.jpg"]].shape == (3, 48, 32)
    assert photos[rows["clear.png"]].min() == 255  # all transparent: white, not what lies beneath
    deep = np.asarray(Image.open(root / "train" / "a" / "sixteen.png")).astype(float) / 257
    assert abs(photos[rows["sixteen.png"]].float().mean().item() - deep.mean()) < 2


def test_missing_splits_are_drawn_from_train_alone(odd):
    _, out, _, summary = odd
    assert summary["splits"]["test"] == 40
    assert summary["splits"]["val"] > 0
    table = Photos(out).manifest
    assert table.filter(pl.col("path").str.starts_with("test/"))["split"].unique().to_list() == ["test"]


def test_too_many_rejections_stop_the_stage_and_say_why(odd, tmp_path):
    root, _, _, _ = odd
    with pytest.raises(ValueError, match=r"more than data.max_rejected 0.05 rejected") as error:
        run(root, tmp_path, max_rejected=0.05)
    assert "4 broken" in str(error.value)
    assert '"path"' not in str(error.value)  # the share is of no single file
    assert not (tmp_path / "index.npz").exists()  # no later stage can run on it
    assert (tmp_path / "rejected.jsonl").read_text().count("\n") == 14  # and a person can see what was wrong


def test_the_same_folder_gives_the_same_rows_whatever_the_order(folder, prepared, tmp_path):
    run(folder, tmp_path)
    assert Photos(tmp_path).manifest.equals(Photos(prepared).manifest)
    assert (tmp_path / "pixels.bin").read_bytes() == (prepared / "pixels.bin").read_bytes()


def test_a_flat_folder_is_unlabeled_and_captions_become_questions(tmp_path):
    source = tmp_path / "album"
    for index in range(30):
        draw(source / f"{index}.png", index)
    (source / "captions.csv").write_text('path,caption\n0.png,a red wall\n1.png,"a door, open"\n')
    (source / "captions.jsonl").write_text('{"path": "2.png", "question": "What color?", "answer": "blue"}\n')
    summary = run(source, tmp_path / "out")
    photos = Photos(tmp_path / "out")
    assert photos.classes == ()
    assert summary["unlabeled"] == 30
    assert summary["captioned"] == 2
    questions = photos.questions("train", "val", "test")
    assert set(questions["answer"]) == {"a red wall", "a door, open", "blue"}


def album(root: Path, count: int = 30) -> Path:
    """`root`/album with so many photos."""
    for index in range(count):
        draw(root / "album" / f"{index:02d}.png", index)
    return root / "album"


def test_a_photo_that_the_disk_does_not_give_is_rejected_and_the_others_are_used(tmp_path, monkeypatch):
    read_bytes = Path.read_bytes

    def failing(path):
        if path.name == "07.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    report = run(album(tmp_path), tmp_path / "out")
    assert (report["used"], report["rejected"]) == (29, {"unreadable": 1})
    assert rejections(tmp_path / "out")["07.png"]["why"] == "PermissionError: Permission denied"


def test_names_and_files_that_only_a_real_disk_has(tmp_path):
    source = album(tmp_path)
    names = [
        "UPPER.PNG",
        "upper.png",
        "two\nlines.png",
        f"{'x' * 250}.png",
        "a, b; c.png",
        "\u00e9\U0001f600.png",
        "folder.jpg/in.png",
    ]
    for index, name in enumerate(names):
        shutil.move(
            draw(source / f"new{index}.png", 100 + index),
            Path(source / name).parent.mkdir(exist_ok=True) or source / name,
        )
    os.rename(draw(source / "new.png", 200), os.fsencode(source) + b"/caf\xe9.png")  # noqa: PTH104
    (source / "broken.jpg").symlink_to("nowhere.jpg")
    (source / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(source / "pipe.png")  # reading it would wait for ever
    (source / "nowhere.txt").touch()
    report = run(source, tmp_path / "out")
    assert report["rejected"] == {"unreadable": 3}
    assert report["used"] == 30 + len(names) + 1
    assert set(Photos(tmp_path / "out").manifest["path"]) >= {*names, r"caf\xe9.png"}
    whys = {name: line["why"] for name, line in rejections(tmp_path / "out").items()}
    assert whys == {
        "broken.jpg": "a link to a file that is not there",
        "self.jpg": "a link to a file that is not there",
        "pipe.png": "not a regular file",
    }


def test_a_rejected_name_that_is_not_utf_8_is_written_and_printed(tmp_path):
    source = album(tmp_path, 3)
    (source / "bad.png").write_text("text")
    (source / "bad.png").rename(source / "b\nd\udce9.png")
    with pytest.raises(ValueError, match=r"  b\\nd\\\\xe9.png: none of JPEG") as error:
        run(source, tmp_path / "out")
    str(error.value).encode()
    assert list(rejections(tmp_path / "out")) == ["b\nd\\xe9.png"]


def test_a_mistake_of_ours_is_seen_though_it_stops_no_photo(tmp_path, monkeypatch):
    write_jpeg = prepare_stage.jpeg

    def wrong(pixels, quality):
        return write_jpeg(pixels, quality) if pixels.mean() > 60 else {}["quality"]

    monkeypatch.setattr(prepare_stage, "jpeg", wrong)
    dark = album(tmp_path) / "dark.png"
    Image.new("RGB", (40, 40), (1, 2, 3)).save(dark)
    report = run(tmp_path / "album", tmp_path / "out", jpeg_quality=90)
    assert report["rejected"] == {"unexpected": 1}
    assert report["warnings"] == [
        '1 file raised unexpected errors; this may be a bug in selfsight: see kind "unexpected" in rejected.jsonl'
    ]
    line = rejections(tmp_path / "out")["dark.png"]
    assert re.fullmatch(r"KeyError: 'quality' \(in test_prepare.py, line \d+, wrong\)", line["why"])
    monkeypatch.setattr(prepare_stage, "jpeg", lambda *_: 1 // 0)
    with pytest.raises(ValueError, match=r"31 unexpected[^$]*00.png: ZeroDivisionError: .*test_prepare.py"):
        run(tmp_path / "album", tmp_path / "out", jpeg_quality=90)


def test_classes_that_cannot_be_learned_or_measured_are_named(tmp_path):
    photos = {"train/a": 12, "train/b": 3, "train/single": 1, "test/a": 3, "test/b": 3, "test/unknown": 2}
    for folder, count in photos.items():
        for index in range(count):
            draw(tmp_path / "in" / folder / f"{index}.png", sum(map(ord, folder)) * 100 + index)
    report = run(tmp_path / "in", tmp_path / "out", max_imbalance=10, val_share=0)
    assert report["warnings"] == [
        "no usable photo in the val split",
        "no photo in train, so that they cannot be learned: 1 class: unknown (2 test)",
        "one photo in train: 1 class: single",
        "no photo in test, so that they are not measured: 1 class: single",
        "classes are unbalanced: a has 12 photos in train, single 1; prepare.max_imbalance is 10",
    ]


@pytest.mark.parametrize("depth", [10, 12, 14])
def test_data_of_fewer_bits_is_noticed_and_scaled_as_set(depth, tmp_path):
    highest = 2**depth - 1
    for index in range(30):
        values = np.random.default_rng(index).integers(0, highest + 1, (16, 16))
        values.flat[:2] = 0, highest
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "in" / f"{index:02d}.{('png', 'tif')[index % 2]}")
    report = run(tmp_path / "in", tmp_path / "out")
    (warning,) = report["warnings"]
    assert f"values up to {highest} only, as {depth}-bit images do: {2 ** (depth - 8)} of 256 gray levels" in warning
    assert f"Set prepare.bit_depth: {depth}, or 16" in warning
    assert run(tmp_path / "in", tmp_path / "out", bit_depth=16)["warnings"] == []
    assert run(tmp_path / "in", tmp_path / "out", bit_depth=depth)["warnings"] == []
    photos = Photos(tmp_path / "out")
    row = photos.manifest["path"].to_list().index("00.png")
    values = np.asarray(Image.open(tmp_path / "in" / "00.png")).astype(float)
    # whole numbers: as `highest` is odd, none lies at a half, and rounding has no choice
    assert np.array_equal(photos[row][0].numpy(), (values * 255 / highest).round())
    with pytest.raises(ValueError, match=rf"values from 0 to {highest}; 0 to 255 \(8 bits, see prepare.bit_depth\)"):
        run(tmp_path / "in", tmp_path / "out", bit_depth=8)


def test_a_dark_photo_among_those_of_sixteen_bits_is_no_reason_to_warn():
    peaks = {f"{index}.png": 65_000 for index in range(10)}
    assert bit_depth_warnings({**peaks, "dark.png": 900}, "auto") == []
    dark = {f"dark{index}.png": 900 for index in range(12)}
    (warning,) = bit_depth_warnings(peaks | dark, "auto")
    assert warning.startswith("12 of 22 images with 16 bits a channel hold values of fewer bits")
    assert bit_depth_warnings(peaks | dark, 16) == []


@pytest.mark.parametrize("side", [20_000, 20_001])
def test_the_largest_size_is_the_one_of_the_settings(side, tmp_path):
    """Above the limit that Pillow has of itself; the file says so and is not decoded."""
    source = album(tmp_path)
    Image.new("1", (side, 20_000)).save(source / "large.png")
    report = run(source, tmp_path / "out", max_pixels=20_000 * 20_000)
    assert report["rejected"] == ({} if side == 20_000 else {"bomb": 1})
    if side > 20_000:
        why = rejections(tmp_path / "out")["large.png"]["why"]
        assert why == "Image size (400020000 pixels) exceeds limit of 400000000 pixels, prepare.max_pixels"
