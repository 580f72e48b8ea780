"""Files of every sick kind go in; every rejection is explained, and the good ones come through whole."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import psutil
import pytest
import torch
from PIL import Image

from components.data.augment import Jitter, View
from components.data.fields import make_batch
from components.data.photos import Photos
from components.data.sources import DATASETS, NAME, read
from components.stages.prepare import DataConfig, PrepareConfig, Ran, prepare
from tests.conftest import draw

GOOD = 200


def run(source: Path, out: Path, max_rejected: float = 0.1, jpeg_quality: int | None = None, **settings):
    data = DataConfig(source=str(source), size=32, max_rejected=max_rejected, jpeg_quality=jpeg_quality)
    config = Ran(data=data, prepare=PrepareConfig(**settings))
    return prepare(config, out, out / "downloads")


def sick(root: Path) -> dict[str, str | None]:
    """Twenty odd files beside the good ones: path -> the kind of its rejection, None where it must come through."""
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
        "phone.heic": "format",
        "copy_of_000.png": "duplicate",
        "leak_of_180.png": "leak",
        "same_pixels_as_002.bmp": "duplicate",
    }
    odd = Image.open(draw(train / "odd.png", 10_003, (60, 40)))
    (train / "odd.png").unlink()
    odd.convert("CMYK").save(train / "cmyk.jpg")
    deep = (np.asarray(odd.convert("L")).astype(np.uint16) * 257)[::-1]
    Image.fromarray(deep).save(train / "sixteen.png")
    turned = odd.copy()
    turned.getexif()[0x0112] = 6
    turned.save(train / "turned.jpg", exif=turned.getexif())
    odd.rotate(90).convert("P").save(train / "palette.png")
    odd.rotate(180).save(train / "animated.gif", save_all=True, append_images=[odd])
    clear = odd.transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    clear.save(train / "clear.png")
    return kinds | dict.fromkeys(
        ("cmyk.jpg", "sixteen.png", "turned.jpg", "palette.png", "animated.gif", "clear.png"), None
    )


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    root, out = tmp_path_factory.mktemp("ward"), tmp_path_factory.mktemp("out")
    for index in range(GOOD):
        split, label = ("test" if index >= 160 else "train"), "ab"[index % 2]
        draw(root / split / label / f"{index:03d}.png", index)
    kinds = sick(root)
    return root, out, kinds, run(root, out, max_rejected=0.2)


def test_twenty_sick_files_are_told_from_two_hundred_good_ones(ward):
    _, out, kinds, summary = ward
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(kinds) == 20
    found = {Path(line["path"]).name: line["kind"] for line in rejected}
    assert found == {name: kind for name, kind in kinds.items() if kind}
    assert all(line["why"] for line in rejected)
    assert summary["used"] == GOOD + sum(kind is None for kind in kinds.values())
    assert sum(summary["rejected"].values()) == len(rejected)


def test_the_good_ones_come_through_whole(ward):
    root, out, _, _ = ward
    photos = Photos(out)
    table = photos.manifest
    assert table.filter(pl.col("path").str.contains(r"/\d{3}\.png$")).height == GOOD
    for row in range(0, len(photos), 17):
        path = table["path"][row]
        if path.endswith("png") and Path(path).stem.isdigit():
            wanted = Image.open(root / path).convert("RGB").resize((32, 42))
            assert np.abs(photos[row].permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted)).mean() < 2


def test_a_leak_stays_where_we_measure_and_a_duplicate_says_of_what(ward):
    _, out, _, _ = ward
    why = {line["path"]: line["why"] for line in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())}
    assert why["train/a/leak_of_180.png"] == "the same picture as test/a/180.png, which stays in test"
    assert why["train/a/copy_of_000.png"] == "the same picture as train/a/000.png"
    assert "train/b/001.png" not in why
    table = Photos(out).manifest
    assert table.filter(pl.col("path") == "test/a/180.png")["split"].item() == "test"


def test_odd_modes_are_converted_and_counted(ward):
    root, out, _, summary = ward
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


def test_missing_splits_are_drawn_from_train_alone(ward):
    _, out, _, summary = ward
    assert summary["splits"]["test"] == 40
    assert summary["splits"]["val"] > 0
    table = Photos(out).manifest
    assert table.filter(pl.col("path").str.starts_with("test/"))["split"].unique().to_list() == ["test"]


def test_too_many_rejections_stop_the_stage_and_say_why(ward, tmp_path):
    root, _, _, _ = ward
    with pytest.raises(ValueError, match=r"more than data.max_rejected 0.05 rejected") as error:
        run(root, tmp_path, max_rejected=0.05)
    assert "3 broken" in str(error.value)
    assert '"path"' not in str(error.value)  # no file is to blame for the share
    assert not (tmp_path / "index.npz").exists()  # nothing downstream can run on it
    assert (tmp_path / "rejected.jsonl").read_text().count("\n") == 14  # and a person can see what was wrong


def test_the_same_folder_gives_the_same_rows_whatever_the_order(folder, prepared, tmp_path):
    run(folder, tmp_path)
    assert Photos(tmp_path).manifest.equals(Photos(prepared).manifest)
    assert (tmp_path / "pixels.bin").read_bytes() == (prepared / "pixels.bin").read_bytes()


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory) -> Photos:
    """The pictures of `photos`, packed as JPEGs."""
    out = tmp_path_factory.mktemp("small")
    run(folder, out, jpeg_quality=90)
    return Photos(out)


def test_packed_as_jpegs_only_the_bytes_are_others(photos, small):
    ours, raw = (p.manifest.drop("offset", "packed_bytes") for p in (small, photos))
    assert ours.equals(raw)
    assert (small.folder / "pixels.bin").stat().st_size == small.manifest["packed_bytes"].sum()
    for row in (0, 41, 95):
        file = io.BytesIO()
        Image.fromarray(photos[row].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=90, subsampling=0)
        wanted = np.array(Image.open(file))
        assert np.array_equal(small[row].permute(1, 2, 0).numpy(), wanted)
        assert 0 < np.abs(wanted.astype(int) - photos[row].permute(1, 2, 0).numpy()).mean() < 8
    assert torch.equal(small.labels(small.rows("train")), photos.labels(photos.rows("train")))


def test_views_of_jpegs_are_views_of_what_they_decode_to(photos, small, tmp_path, monkeypatch):
    """With any number of threads, by either renderer, and of whole pictures."""
    for file in ("index.npz", "manifest.parquet"):
        shutil.copy(photos.folder / file, tmp_path)
    np.concatenate([small[row].permute(1, 2, 0).numpy().ravel() for row in range(96)]).tofile(tmp_path / "pixels.bin")
    decoded, rows = Photos(tmp_path), small.rows("train")[::-1].copy()
    views = [View(24, jitter=Jitter(0.4, 0.4, 0.4, 0.1), blur=0.5), View(16)]
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for one, other in zip(*(make_batch(p, rows, views, 0, 1) for p in (small, decoded)), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(*(p.stack(rows, torch.device("cpu")) for p in (small, decoded)))
    assert torch.equal(*(p.squares(rows, 20) for p in (small, decoded)))


def test_more_than_memory_holds_is_said(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**18))
    (warning,) = run(folder, tmp_path)["warnings"]
    assert warning.endswith("every epoch will read the disk; try data.jpeg_quality, 95 say, or a smaller data.size")
    (warning,) = run(folder, tmp_path, jpeg_quality=100)["warnings"]
    assert warning.endswith("try a smaller data.size")


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
    asked = photos.questions("train", "val", "test")
    assert set(asked["answer"]) == {"a red wall", "a door, open", "blue"}


@pytest.mark.parametrize(
    ("name", "content"), [("captions.csv", b"path,caption\n0.png,caf\xe9\n"), ("captions.jsonl", b"{")]
)
def test_captions_that_cannot_be_read_are_named(name, content, tmp_path):
    draw(tmp_path / "0.png", 0)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read: .*UTF-8"):
        read(str(tmp_path), 0, 0, tmp_path)


def test_captions_of_unknown_files_and_without_columns_are_refused(tmp_path):
    draw(tmp_path / "0.png", 0)
    (tmp_path / "captions.csv").write_text("path,caption\nmissing.png,a wall\n")
    with pytest.raises(ValueError, match=r"captions name 1 files that are not in .*missing.png"):
        read(str(tmp_path), 0, 0, tmp_path)
    (tmp_path / "captions.csv").write_text("file,text\n0.png,a wall\n")
    with pytest.raises(ValueError, match="row 1: needs path, and caption or question and answer; given: file, text"):
        read(str(tmp_path), 0, 0, tmp_path)


def test_one_lonely_class_folder_is_no_class(tmp_path):
    for index in range(3):
        draw(tmp_path / "holiday" / f"{index}.png", index)
    source = read(str(tmp_path), 0, 0, tmp_path)
    assert {entry.label for entry in source.entries} == {None}
    assert "holiday" in source.notes[0]


def test_one_folder_too_high_is_seen(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            draw(tmp_path / "photos" / split / name / "0.png", len(split + name))
    source = read(str(tmp_path), 0, 0, tmp_path)
    assert {(entry.path, entry.split, entry.label) for entry in source.entries} == {
        (f"{split}/{name}/0.png", split, name) for split in ("train", "test") for name in ("cat", "dog")
    }
    assert source.notes == ["all pictures are in photos, so that is what was read"]


@pytest.mark.parametrize(("name", "said"), [("nowhere", "allowed: a folder"), (".", "holds no picture")])
def test_a_source_that_is_none_says_what_is_allowed(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        read(name, 0, 0, tmp_path)


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
    entries = read("cifar10", 0, 0, tmp_path).entries
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
        read("cifar10", 0, 0, tmp_path)


def test_folders_of_splits_have_nothing_beside_them(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "unsorted/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(_png(1))
    with pytest.raises(ValueError, match=r"folders of splits \(test, train\) and beside them unsorted; move those"):
        read(str(tmp_path), 0, 0, tmp_path)
    shutil.rmtree(tmp_path / "test")
    labels = {entry.label for entry in read(str(tmp_path), 0, 0, tmp_path).entries}
    assert labels == {"train", "unsorted"}  # one alone may be a class: of trains


def test_a_picture_that_the_disk_does_not_give_is_rejected_and_the_others_are_used(tmp_path, monkeypatch):
    for index in range(30):
        draw(tmp_path / "photos" / f"{index:02d}.png", index)
    read_bytes = Path.read_bytes

    def failing(path):
        if path.name == "07.png":
            raise PermissionError("permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    config = Ran(data=DataConfig(source=str(tmp_path / "photos"), size=32), prepare=PrepareConfig())
    summary = prepare(config, tmp_path / "out", tmp_path)
    assert (summary["used"], summary["rejected"]) == (29, {"unreadable": 1})


def test_every_named_data_set_is_torchvisions():
    from torchvision import datasets

    assert all(hasattr(datasets, kind) for kind, _ in DATASETS.values())


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()
