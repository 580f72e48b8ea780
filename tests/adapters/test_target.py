"""Photos with several labels: each kind of classifier learns all of them, and says of each whether a photo shows it."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from components.adapters import task as task_module
from components.adapters.heads import LinearHead
from components.adapters.saved import SavedClassifier, load_classifier
from components.adapters.target import OneLabel, SeveralLabels, target_of
from components.commands.one_photo import open_photo, prepare_settings
from components.data.label_sets import label_sets
from components.data.photos import Photos, as_square
from components.evaluation.several_labels import labels_loss, mean_average_precision
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.precision import uses_bf16
from components.stages.adapt import AdaptConfig, adapt, describe
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.adapters.stock_images import documented
from tests.tolerances import BF16, FLOAT32, LAYERS_FLOAT32

ROOT = Path(__file__).parents[2]
KINDS = ("linear", "mlp", "attention", "lora", "full")
COLORS = ("blue", "green", "red")
SPLITS = ("train",) * 90 + ("val",) * 30 + ("test",) * 60
FAST: dict[str, Any] = {"epochs": 15, "batch_size": 30, "attention": {"heads": 4}, "mlp": {"hidden": 16}, "flip": 0.5}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that are brighter in the colors that are their labels, prepared; some have no label.

    One in ten labels is wrong, so that no classifier is certain.
    """
    root, random = tmp_path_factory.mktemp("album"), np.random.default_rng(0)
    (root / "photos").mkdir()
    lines = ["path,label,split"]
    for index, split in enumerate(SPLITS):
        shown = random.random(3) < (0.5, 0.4, 0.3)
        pixels = random.integers(0, 120, (4, 5, 3)) + 110 * shown[::-1]
        shown ^= random.random(3) < 0.1
        name = f"{index:03d}.png"
        Image.fromarray(pixels.astype(np.uint8)).resize((40, 32), Image.Resampling.BICUBIC).save(root / "photos" / name)
        lines.append(f"{name},{'|'.join(np.array(COLORS)[shown])},{split}")
    (root / "photos" / "labels.csv").write_text("\n".join(lines))
    settings = ResolvedConfig(data=DataConfig(source=str(root / "photos"), size=32), prepare=PrepareConfig())
    prepare(settings, root / "prepare", root)
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2)).save(folder / "backbone")
    return folder


def config(kind: str, **changes: Any) -> AdaptConfig:
    rate = {"kind": "adamw", "lr": 0.003 if kind in ("lora", "full") else 0.05}
    values = {"method": "simclr", "kind": kind, "optimizer": rate, "onnx": kind == "linear", **FAST}
    return AdaptConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def adapted(pretrained: Path, album: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What adapt writes for each kind."""
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_module, "FEWEST_LABELS", 5)
        patch.setenv("SELFSIGHT_SCRATCH", str(folder / "scratch"))
        logging.disable(logging.DEBUG)  # of which the exporter writes so much that it takes half of the time
        for kind in KINDS:
            adapt(config(kind), pretrained, album / "prepare", folder / kind)
        logging.disable(logging.NOTSET)
    return {kind: folder / kind for kind in KINDS}


def metrics_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_and_is_saved_as_it_was_measured(kind: str, adapted: dict[str, Path], album: Path) -> None:
    metrics, saved = metrics_of(adapted[kind]), load_classifier(adapted[kind] / "model")
    photos = Photos(album / "prepare")
    assert photos.label_sets
    assert saved.multi_label
    assert saved.classes == COLORS == tuple(metrics["classes"])
    test = photos.rows("test")
    test = test[photos.label_sets.labeled()[test]]
    labels = photos.label_sets.matrix(test)
    probabilities = saved.probabilities(photos.squares(test, saved.size, saved.square))
    found, chance = metrics["mean_average_precision"], metrics["chance"]
    assert found["of"] == len(test) < 60  # the others have no label
    # photos with nearly the same probability may change places
    order, close = (0.05, BF16) if uses_bf16() else (0.01, LAYERS_FLOAT32)
    assert mean_average_precision(probabilities, labels) == pytest.approx(found["value"], abs=order)
    assert chance == pytest.approx(float(labels.double().mean()))
    assert found["value"] > chance + 0.2  # a random order of so many photos is within 0.1 of chance
    assert found["low"] > chance
    losses = -torch.where(labels, probabilities, 1 - probabilities).log()
    assert float(losses.mean()) == pytest.approx(metrics["calibration"]["cross_entropy_after"], abs=close)
    assert metrics["calibration"]["fitted_on"].startswith("the ")
    for name, shown in zip(COLORS, labels.T, strict=True):
        of = metrics["by_class"][name]
        assert (of["photos"], of["chance"]) == (int(shown.sum()), float(shown.double().mean()))
    precisions = [of["average_precision"] for of in metrics["by_class"].values()]
    assert sum(precisions) / 3 == pytest.approx(found["value"])
    if kind != "linear":
        difference = metrics["above_linear"]
        assert difference["value"] == pytest.approx(found["value"] - metrics["linear"]["value"])
        assert difference["low"] <= difference["value"] <= difference["high"]
        ranks = [(line["mean_average_precision"], -line["cross_entropy"]) for line in metrics["epochs"]]
        assert metrics["kept_epoch"] == metrics["epochs"][ranks.index(max(ranks))]["epoch"]


def test_the_lines_for_a_terminal_say_what_was_measured(adapted: dict[str, Path]) -> None:
    metrics = metrics_of(adapted["mlp"])
    lines = describe(metrics)
    value, chance = metrics["mean_average_precision"]["value"], metrics["chance"]
    assert any(line.startswith(f"mAP       {value:.3f} (") for line in lines)
    assert any(line.startswith(f"chance    {chance:.3f}, ") for line in lines)
    assert any(line.startswith("above linear") for line in lines)
    assert lines[-1].startswith("few labels: not measured: a photo with several labels")


def test_stock_pipelines_apply_a_sigmoid(adapted: dict[str, Path], album: Path) -> None:
    for kind in ("linear", "lora", "full"):
        saved, photos = load_classifier(adapted[kind] / "model"), Photos(album / "prepare")
        (square,) = photos.squares(np.array([0]), saved.size, saved.square)
        stock = pipeline("image-classification", model=str(adapted[kind] / "model"))
        found = stock(Image.fromarray(square.permute(1, 2, 0).numpy()), top_k=3)
        expected = dict(zip(COLORS, saved.model(square[None])[0].sigmoid().tolist(), strict=True))
        assert {one["label"]: one["score"] for one in found} == pytest.approx(expected, abs=LAYERS_FLOAT32)
        assert sum(expected.values()) != pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_forms_of_our_own_say_it_too(kind: str, adapted: dict[str, Path]) -> None:
    assert json.loads((adapted[kind] / "model" / "config.json").read_text())["problem_type"] == (
        "multi_label_classification"
    )


def test_torchvisions_form_says_it_too(album: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build(ResNetBackbone(kind="resnet18", image_size=16)).save(tmp_path / "pre" / "backbone")
    adapt(config("linear", epochs=1, onnx=False), tmp_path / "pre", album / "prepare", tmp_path / "out")
    saved = load_classifier(tmp_path / "out" / "model")
    assert (saved.multi_label, saved.classes) == (True, COLORS)


def test_the_onnx_file_has_the_logits_and_says_that_labels_are_several(adapted: dict[str, Path], album: Path) -> None:
    saved, photos = load_classifier(adapted["linear"] / "model"), Photos(album / "prepare")
    squares = photos.squares(np.arange(4), saved.size, saved.square)
    docs = documented((ROOT / "docs" / "loading.md").read_text(encoding="utf-8"))
    names, shares = docs["classify"](adapted["linear"] / "model", squares.numpy())
    assert tuple(names) == COLORS
    assert np.allclose(shares, saved.probabilities(squares), atol=LAYERS_FLOAT32)


def test_classify_prints_what_is_more_probable_than_not(adapted: dict[str, Path], album: Path) -> None:
    """In a fresh process."""
    files = [album / "photos" / f"{index:03d}.png" for index in range(12)]
    saved = load_classifier(adapted["linear"] / "model")
    settings = prepare_settings(None, saved.size)
    squares = [as_square(open_photo(file, settings), saved.size, saved.square) for file in files]
    expected = saved.probabilities(torch.stack(squares))
    command = [sys.executable, "-m", "components.commands.cli", "classify", *map(str, files)]
    command += ["--adapter", str(adapted["linear"])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = []
    for file, row in zip(files, expected, strict=True):
        best = sorted(zip(row.tolist(), COLORS, strict=True), reverse=True)
        named = [one for one in best if one[0] > 0.5] or best[:1]
        lines += [str(file), *(f"  {value:6.1%}  {name}" for value, name in named)]
    assert done.stdout.splitlines() == lines
    assert len(lines) > 2 * len(files)  # some photos have several


def test_at_least_the_best_is_named_and_a_given_number_is_kept() -> None:
    logits = torch.tensor([[2.0, -1.0, 1.0], [-2.0, -1.0, -3.0]])
    saved = SavedClassifier(torch.nn.Identity(), COLORS, 16, "squash", multi_label=True)
    assert [[name for name, _ in row] for row in saved.likely(logits)] == [["blue", "red"], ["green"]]
    assert [len(row) for row in saved.likely(logits, 2)] == [2, 2]
    assert saved.likely(logits)[1][0][1] == pytest.approx(1 / (1 + math.e))


def test_yes_and_no_weigh_the_same_for_each_class(album: Path, pretrained: Path, tmp_path: Path) -> None:
    target = target_of(Photos(album / "prepare"))
    labels, weights = target.labels(target.rows("train")), target.class_weights()
    assert weights.shape == (2, 3)
    for shown, (no, yes) in zip(labels.T, weights.T, strict=True):
        assert float(no * (~shown).sum()) == pytest.approx(float(yes * shown.sum()), rel=FLOAT32)
        assert float(no * (~shown).sum() + yes * shown.sum()) == pytest.approx(len(labels), rel=FLOAT32)
    head = LinearHead(torch.randn(len(labels), 4), 3, weights)
    loss = head((torch.randn(len(labels), 4), labels))["loss"].detach()
    assert float(loss) == pytest.approx(math.log(2))  # all logits are 0
    metrics = adapt(config("linear", balance="weights", onnx=False), pretrained, album / "prepare", tmp_path / "out")
    assert metrics["balance"] == "weights"
    plain = adapt(config("linear", onnx=False), pretrained, album / "prepare", tmp_path / "plain")
    assert metrics["mean_average_precision"]["value"] > plain["chance"] + 0.2
    files = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("out", "plain")]
    assert not torch.equal(files[0]["classifier.weight"], files[1]["classifier.weight"])


@torch.no_grad()
def test_the_loss_is_by_the_shape_of_the_labels() -> None:
    torch.manual_seed(0)
    head, outputs = LinearHead(torch.randn(9, 4), 3), torch.randn(6, 4)
    torch.nn.init.normal_(head.linear.weight)
    several = torch.rand(6, 3) < 0.5
    assert torch.equal(head((outputs, several))["loss"], labels_loss(head.logits(outputs), several))
    assert "accuracy" in head((outputs, torch.tensor([0, 1, 2, 0, 1, 2])))


def test_what_cannot_be_learned_or_measured_is_said(photos: Photos) -> None:
    assert isinstance(target_of(photos), OneLabel)

    def problem(*names: str) -> str | None:
        labels = [names[0].split()] * len(photos)
        for row, own in zip(photos.rows("test"), names[1:], strict=False):
            labels[row] = own.split()
        rest = photos.rows("test")[len(names) - 1 :]
        for row in rest:
            labels[row] = ["other"]
        splits = np.isin(np.arange(len(photos)), photos.rows("train"))
        sets = label_sets(labels, splits.tolist())
        assert sets
        return SeveralLabels(photos, sets).problem()

    assert problem("a b") == "no test photo has a label that training photos have"
    assert problem("a b", "a") == "all labeled training photos have the same labels"
