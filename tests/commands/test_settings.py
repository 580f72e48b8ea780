"""Settings are chosen that fit any folder and machine, that the check accepts, and that never replace a user's own."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from components.commands.check import check
from components.commands.choose import choose, packed_size, published
from components.commands.photo_folder import PhotoFolder, describe_folder
from components.commands.plan import plan
from components.commands.settings import keep, settings, write
from components.commands.speed import Machine, Speed
from components.data.photos import Photos
from components.stages.pretrain_config import configure_for, resolve
from tests.conftest import draw

TWO_CORES = Machine(cores=2, memory=8, bf16=False)
GPU = Machine(cores=16, memory=128, bf16=True, gpu="H100", gpu_memory=79)
SPEED = {
    TWO_CORES: Speed(start=6, read=0.002, forward=0.007, train=0.02, token=0.004),
    GPU: Speed(start=6, read=0.0005, forward=0.0003, train=0.001, token=0.00002),
}
MEGAPIXELS = {64: 0.004, 480: 0.3, 4000: 24.0}  # by the shorter side


def described(photos: int, classes: int, side: int) -> PhotoFolder:
    val, test = photos // 10, photos // 5
    train = photos - val - test
    of_labels = {"classes": classes, "questions": train, "answer_length": 10} if classes else {}
    return PhotoFolder(Path("/photos"), train, val, test, side, MEGAPIXELS[side], ("val", "test"), **of_labels)


def prepared(folder: PhotoFolder, size: int, out: Path) -> Photos:
    """What prepare would write, as far as the check reads it; the file of pixels has no content, and takes no space."""
    out.mkdir()
    side = min(size, folder.side)
    shapes = np.full((folder.photos, 2), side)
    splits = np.repeat([0, 1, 2], [folder.train, folder.val, folder.test])
    labels = np.arange(folder.photos) % folder.classes if folder.classes else np.full(folder.photos, -1)
    classes = np.array([f"class {n}" for n in range(folder.classes)], dtype=np.str_)
    offsets = np.arange(folder.photos) * side * side * 3
    np.savez(out / "index.npz", offsets=offsets, shapes=shapes, splits=splits, labels=labels, classes=classes)
    with (out / "pixels.bin").open("wb") as file:
        file.truncate(folder.photos * side * side * 3)
    return Photos(out)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


TABLE = list(itertools.product((60, 300, 1000, 3781), (0, 10), (64, 480, 4000), (TWO_CORES, GPU)))


@pytest.mark.parametrize(("photos", "classes", "side", "machine"), TABLE)
def test_any_folder_and_machine(photos, classes, side, machine, tmp_path):
    folder = described(photos, classes, side)
    minutes = 60 if machine.gpu else 30
    values = yaml.safe_load(choose(folder, machine, SPEED[machine], minutes))
    assert plan(folder, machine, SPEED[machine], minutes).minutes < minutes

    size = 224 if machine is GPU and side > 64 else 128
    assert values["pretrain"]["common"]["backbone"] == published(size)
    assert values["data"]["size"] == packed_size(size)
    assert values["methods"][:2] == ["published", "distill"]
    for stage in ("adapt", "embed", "words", "connect"):
        assert values[stage]["method"] == ("distill" if classes else "published")
    assert values["connect"]["batch_size"] <= max(1, folder.questions)
    assert 2 <= values["answer"]["pictures"] <= max(2, folder.test)
    assert values["evaluate"]["neighbors"] <= 20

    data = prepared(folder, values["data"]["size"], tmp_path / "data")
    for name in values["methods"]:
        config = resolve(configure_for(name, values["pretrain"], data), data, 1)
        assert config.backbone.image_size == size
        if name != "published":
            per_epoch = folder.train // config.batch_size
            assert per_epoch >= 4
            assert config.epochs * per_epoch * config.batch_size <= 600_000
            assert config.settings.teacher.image_size > size
            assert config.settings.blur == 0


@pytest.mark.parametrize(
    ("photos", "classes", "side", "machine"),
    [(60, 0, 64, TWO_CORES), (1000, 10, 4000, GPU)],
)
def test_the_check_accepts_it_before_and_after_prepare(photos, classes, side, machine, tmp_path, source):
    folder = described(photos, classes, side)
    text = choose(folder, machine, SPEED[machine], 30).replace("source: /photos", f"source: {source}")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    prepared(folder, yaml.safe_load(text)["data"]["size"], tmp_path / "data")
    assert check(path).errors == []
    assert check(path, tmp_path / "data").errors == []


def test_every_setting_that_was_chosen_has_its_reason():
    text = choose(described(3781, 10, 480), TWO_CORES, SPEED[TWO_CORES], 30)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    for name in (
        "methods",
        "size",
        "backbone",
        "batch_size",
        "epochs",
        "crop",
        "neighbors",
        "method",
        "steps",
        "pictures",
    ):
        places = [place for place, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
        assert places, name
        assert all("# " in lines[place] or "# " in lines[place - 1] for place in places), name
    assert "in all: 2" in text


def test_minutes_decide_what_is_trained_and_for_how_long():
    folder = described(3781, 10, 480)
    few, some, many = (plan(folder, TWO_CORES, SPEED[TWO_CORES], minutes) for minutes in (8, 30, 240))
    assert few.epochs == 0
    assert 2 <= some.epochs < many.epochs
    assert few.steps < some.steps <= many.steps  # of which there is an upper bound
    assert some.minutes <= 30
    text = choose(folder, TWO_CORES, SPEED[TWO_CORES], 8)
    assert "there is no time to train them further; give more --minutes" in text


def test_a_busy_gpu_and_a_small_memory():
    small = Machine(cores=2, memory=8, bf16=True, gpu="T4", gpu_memory=6)
    folder = described(3781, 10, 4000)
    values = yaml.safe_load(choose(folder, small, SPEED[GPU], 30))
    assert values["pretrain"]["common"]["batch_size"] == "auto"
    assert yaml.safe_load(choose(folder, GPU, SPEED[GPU], 30))["pretrain"]["common"]["batch_size"] == 128
    assert "jpeg_quality" not in values["data"]
    many = PhotoFolder(Path("/photos"), 70_000, 10_000, 20_000, 4000, 24.0)
    assert yaml.safe_load(choose(many, small, SPEED[GPU], 30))["data"]["jpeg_quality"] == 95


@pytest.mark.parametrize("name", ["no", "a: b", "#x", "größe", "it's", "{x}", "- a", "1e3", "*x"])
def test_a_folder_of_any_name_is_written_as_it_is(name):
    folder = PhotoFolder(Path("/photos") / name, 42, 6, 12, 480, 0.3)
    values = yaml.safe_load(choose(folder, TWO_CORES, SPEED[TWO_CORES], 30))
    assert values["data"]["source"] == f"/photos/{name}"


def test_a_folder_is_described_by_its_headers(tmp_path):
    for index in range(40):
        draw(tmp_path / ("train", "test")[index % 4 == 0] / "ab"[index % 2] / f"{index}.jpg", index, (90, 120))
    (tmp_path / "train" / "b" / "1.jpg").write_bytes((tmp_path / "train" / "b" / "1.jpg").read_bytes()[:700])
    folder, files = describe_folder(tmp_path)
    assert folder == PhotoFolder(
        tmp_path, train=27, val=3, test=10, side=90, megapixels=0.0108, drawn=("val",), classes=2, questions=27,
        answer_length=1,
    )  # fmt: skip
    assert len(files) == 40  # the damaged one has its header


def test_captions_are_questions_too(tmp_path):
    for index in range(20):
        draw(tmp_path / f"{index}.png", index)
    lines = [json.dumps({"path": f"{index}.png", "caption": "a smooth picture"}) for index in range(10)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    folder, _ = describe_folder(tmp_path)
    assert (folder.classes, folder.captioned, folder.questions, folder.answer_length) == (0, 10, 7, 16)
    assert yaml.safe_load(choose(folder, TWO_CORES, SPEED[TWO_CORES], 30))["connect"]["batch_size"] <= 7


def test_photos_with_several_labels_have_a_classifier(tmp_path):
    lines = ["path,label"]
    for index in range(20):
        draw(tmp_path / f"{index}.png", index)
        lines.append(f"{index}.png,{'cat|dog' if index % 2 else 'cat'}")
    for table, adapt, several in (
        (lines, "", "1 classes, 10 with several labels,"),
        (["path,label"], "skipped", "no labels,"),
    ):
        (tmp_path / "labels.csv").write_text("\n".join(table))
        folder, _ = describe_folder(tmp_path)
        text = choose(folder, TWO_CORES, SPEED[TWO_CORES], 30)
        assert several in text
        assert (f"adapt:  # {adapt}" in text) == bool(adapt)
    (tmp_path / "labels.csv").write_text("\n".join(lines[:1] + lines[2::2]))
    folder, _ = describe_folder(tmp_path)
    assert (folder.classes, folder.multi_labeled) == (0, 10)
    assert "skipped" not in choose(folder, TWO_CORES, SPEED[TWO_CORES], 30).split("\nadapt:")[1].partition("\n")[0]


def _broken(folder: Path, count: int) -> None:
    for index in range(30):
        file = draw(folder / f"{index:02d}.png", index)
        if index < count:
            file.write_bytes(b"not a picture")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.rmdir(), "there is no folder "),
        (
            lambda folder: (folder.rmdir(), folder.write_text("")),
            " is a file; the folder that holds the photos",
        ),
        (lambda folder: None, " holds no image; looked for "),
        (lambda folder: (folder / "a.txt").write_text("x"), "; it has 1 .txt"),
        (lambda folder: draw(folder / "a.png", 0), " holds 1 photo; at least 20 are needed"),
        (lambda folder: [draw(folder / f"{n}.png", n) for n in range(19)], " holds 19 photos; at least 20"),
        (lambda folder: _broken(folder, 4), "4 of 30 photos of "),
    ],
    ids=["missing", "file", "empty", "no pictures", "one", "few", "broken"],
)
def test_photos_that_cannot_be_used_are_refused_in_one_sentence(make, message, source, tmp_path):
    make(source)
    path = tmp_path / "params.yaml"
    path.write_text("mine: 1\n")
    with pytest.raises(ValueError, match=r".") as error:
        settings(source, path=path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.glob("params.yaml*")) == [path]
    assert path.read_text() == "mine: 1\n"


def test_a_few_broken_files_are_left_to_prepare(source):
    _broken(source, 3)
    folder, files = describe_folder(source)
    assert (folder.photos, len(files)) == (30, 27)


def test_no_file_is_lost_and_settings_for_this_folder_are_kept(source, tmp_path):
    for index in range(20):
        draw(source / f"{index}.png", index)
    path, chosen = tmp_path / "params.yaml", choose(described(60, 0, 64), TWO_CORES, SPEED[TWO_CORES], 30)
    chosen = chosen.replace("source: /photos", f"source: {source}")
    path.write_text("mine: 1\n")
    assert write(chosen, path) == tmp_path / "params.yaml.1"
    assert path.read_text() == chosen
    assert (tmp_path / "params.yaml.1").read_text() == "mine: 1\n"

    edited = chosen.replace("crop: [0.3, 1.0]", "crop: [0.5, 1.0]")
    path.write_text(edited)
    (line,) = settings(source, path=path)
    assert line.startswith(f"{path} is for {source} already and stays as it is")
    assert path.read_text() == edited
    assert keep(path) == tmp_path / "params.yaml.2"
    assert (tmp_path / "params.yaml.2").read_text() == edited
    assert keep(path) == tmp_path / "params.yaml.2"  # is the same
    path.write_text("another: 1\n")
    assert keep(path) == tmp_path / "params.yaml.3"


def test_settings_that_the_check_refuses_are_not_written(source, tmp_path):
    path, chosen = tmp_path / "params.yaml", choose(described(60, 0, 64), TWO_CORES, SPEED[TWO_CORES], 30)
    path.write_text("mine: 1\n")
    with pytest.raises(ValueError, match=r"that were chosen are refused:\ndata.source is '/photos', which"):
        write(chosen, path)
    assert sorted(tmp_path.glob("params*")) == [path]


@pytest.mark.slow
def test_this_machine_is_measured_and_the_file_is_written(source, tmp_path, capfd):
    for index in range(24):
        draw(source / "ab"[index % 2] / f"{index:02d}.png", index, (64, 80), index % 2)
    path = tmp_path / "params.yaml"
    told = settings(source, 30, path)
    assert told[-1] == f"written to {path}, which is yours to change"
    assert any("measured on it: to read a photo " in line for line in told)
    assert check(path).errors == []
    assert yaml.safe_load(path.read_text())["pretrain"]["common"]["backbone"]["image_size"] == 128
    assert "prepare" not in "".join(capfd.readouterr())


def test_make_chooses_settings_only_for_photos():
    def dry(*arguments: str) -> str:
        command = ["make", "--dry-run", "run", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "components.commands.settings" not in dry()
    assert 'python -m components.commands.settings "my photos" --minutes "5"\n' in dry("PHOTOS=my photos", "MINUTES=5")


@pytest.mark.parametrize(("methods", "count"), [(["published", "distill"], 0), (["published", "moco", "dino"], 11)])
def test_make_divides_the_cores_only_if_two_methods_train(methods, count, tmp_path):
    users = {stage: {"method": methods[-1]} for stage in ("adapt", "embed", "words", "connect")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"methods": methods, **users}))
    bin_folder = f"BIN={Path(sys.executable).parent}"
    command = ["make", "--dry-run", "--silent", "-f", str(Path("Makefile").resolve()), "-C", str(tmp_path), bin_folder]
    done = subprocess.run([*command, "stages"], capture_output=True, text=True, check=True)
    assert done.stdout.count("dvc repro --quiet --single-item") == count
