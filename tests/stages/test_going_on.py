"""A published backbone untouched, and training that goes on from it and is never silently worse."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from components.data.photos import Photos
from components.evaluation import points, snapshots
from components.evaluation.points import Point, Watched, measure
from components.methods import METHODS
from components.models.backbone import ViTBackbone, build, load
from components.models.published import resolve as checkpoint_settings
from components.stages import evaluate, pretrain, pretrain_config
from components.training import optim
from components.training.start import Start, rates
from tests.families import checkpoint
from tests.tolerances import LAYERS_FLOAT32

SIMCLR = {"hidden": 16, "dim": 8, "optimizer": {"kind": "adamw", "lr": 1e-3}}


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("vit", tmp_path_factory.mktemp("start"))


def configure(method: str, folder: Path, photos: Photos, **own: Any) -> pretrain_config.PretrainConfig:
    backbone = {"kind": "published", "from": str(folder)}
    common = {"backbone": backbone, "batch_size": 16, "epochs": 2, "seed": 0}
    return pretrain_config.configure_for(method, {"common": common, method: own}, photos)


def run(method: str, folder: Path, photos: Photos, out: Path, **own: Any) -> pretrain_config.PretrainConfig:
    config = configure(method, folder, photos, **own)
    pretrain.pretrain(config, photos.folder, out)
    return config


def measure_as(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Makes each measurement return the next value."""
    points = (Point(value, "made up", 9.0) for value in values)
    monkeypatch.setattr(snapshots, "measure", lambda *_: (next(points), torch.zeros(2, 1)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(folder).named_parameters())


def test_untouched_it_is_saved_and_measured_like_any_other(start_folder, photos, tmp_path):
    run("published", start_folder, photos, tmp_path / "published")
    start, kept = weights(start_folder), weights(tmp_path / "published" / "backbone")
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert not (tmp_path / "published" / "log.jsonl").read_text()
    config = evaluate.EvaluateConfig(neighbors=5)
    metrics = evaluate.evaluate(config, tmp_path / "published", photos.folder, tmp_path / "metrics")
    assert {"majority", "pixels", "random", "backbone"} <= set(metrics)
    assert "start" not in metrics  # it is its own start


def test_the_method_published_needs_published_weights(photos):
    with pytest.raises(ValueError, match="needs published weights"):
        METHODS["published"].method(build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2)), None)


def test_no_epochs_keep_the_start_of_every_method(start_folder, photos, tmp_path):
    run("simclr", start_folder, photos, tmp_path, epochs=0, **SIMCLR)
    start, kept = weights(start_folder), weights(tmp_path / "backbone")
    assert all(torch.equal(start[name], kept[name]) for name in start)


def test_the_best_of_start_and_snapshots_is_kept_and_compared_with_the_start(
    start_folder, photos, tmp_path, monkeypatch
):
    measure_as(monkeypatch, 0.5, 0.4, 0.9, 0.7)
    run("simclr", start_folder, photos, tmp_path / "run", start={"measured": 3}, **SIMCLR)
    summary = json.loads((tmp_path / "run" / "start.json").read_text())
    assert [point["value"] for point in summary["points"]] == [0.5, 0.4, 0.9, 0.7]
    assert (summary["start"], summary["kept"]) == (0.5, 0.9)
    assert summary["kept_step"] == summary["points"][2]["step"]
    start, kept = weights(start_folder), weights(tmp_path / "run" / "backbone")
    assert not all(torch.equal(start[name], kept[name]) for name in start)
    config = evaluate.EvaluateConfig(neighbors=5)
    metrics = evaluate.evaluate(config, tmp_path / "run", photos.folder, tmp_path / "metrics")
    assert metrics["against_start"]["verdict"].endswith("its start")
    difference = metrics["backbone"]["knn"]["value"] - metrics["start"]["knn"]["value"]
    assert metrics["against_start"]["knn"]["value"] == pytest.approx(difference)
    assert (metrics["snapshot"]["name"], metrics["snapshot"]["step"]) == (
        "last snapshot",
        summary["points"][-1]["step"],
    )
    last = weights(tmp_path / "run" / "last")
    assert not all(torch.equal(last[name], kept[name]) for name in last)


@pytest.mark.parametrize(("method", "size"), [("mae", {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2})])
def test_the_start_is_the_backbone_as_published(method, size, start_folder, photos, tmp_path, monkeypatch):
    """Not with the pooling that the method sets."""
    measure_as(monkeypatch, 0.5, 0.4)
    run(method, start_folder, photos, tmp_path, start={"measured": 1}, **size)
    config = configure(method, start_folder, photos, **size)
    assert load(tmp_path / "backbone").pool == build(config.backbone).pool == "class"


def need_labels(count, monkeypatch):
    for module in (points, snapshots):
        monkeypatch.setattr(module, "FEWEST_LABELS", count)


def test_a_method_that_trains_with_labels_is_measured_on_others(start_folder, photos, tmp_path, monkeypatch):
    need_labels(len(photos.rows("val", labeled=True)), monkeypatch)
    run("supervised", start_folder, photos, tmp_path, epochs=1, start={"measured": 1})
    measured = json.loads((tmp_path / "start.json").read_text())["measured"]
    assert f"{len(photos.rows('val', labeled=True))} photos of val, each" in measured


def test_an_interrupted_run_measures_and_keeps_the_same(start_folder, photos, tmp_path, monkeypatch):
    settings = {"start": {"measured": 3}, **SIMCLR}
    run("simclr", start_folder, photos, tmp_path / "whole", **settings)
    real, calls = snapshots.measure, iter(range(3))

    def cut(*args, **settings):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(snapshots, "measure", cut)
    with pytest.raises(KeyboardInterrupt):
        run("simclr", start_folder, photos, tmp_path / "cut", **settings)
    monkeypatch.setattr(snapshots, "measure", real)
    run("simclr", start_folder, photos, tmp_path / "cut", **settings)
    first, second = (json.loads((tmp_path / name / "start.json").read_text()) for name in ("whole", "cut"))
    assert first == second
    whole, again = (weights(tmp_path / name / "backbone") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_run_that_makes_the_features_worse_keeps_the_start(start_folder, photos, tmp_path, monkeypatch):
    measure_as(monkeypatch, 0.5, 0.4, 0.3)
    run("simclr", start_folder, photos, tmp_path, start={"measured": 2}, **SIMCLR)
    start, kept = weights(start_folder), weights(tmp_path / "backbone")
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert json.loads((tmp_path / "start.json").read_text())["kept_step"] == 0


@pytest.mark.parametrize("labels", [True, False])
def test_measuring_changes_no_bit_of_the_run(start_folder, photos, tmp_path, monkeypatch, labels):
    if not labels:
        monkeypatch.setattr(Photos, "labels", lambda self, rows: torch.full((len(rows),), -1))
    losses = []
    for measured in (1, 4):
        out = tmp_path / str(measured)
        run("simclr", start_folder, photos, out, start={"measured": measured}, **SIMCLR)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
        points = json.loads((out / "start.json").read_text())
        assert ("kNN" in points["measured"]) == labels
        assert all(0 <= point["value"] <= 1 for point in points["points"])
    assert losses[0] == losses[1]


VIT = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
PUZZLE = {"patch": 8, "gap": 2, "jitter": 1, "grids": 1, "hidden": 8, "resampled": 0.0}


@pytest.mark.parametrize(
    ("method", "shape", "own"),
    [
        ("dino", VIT, {"hidden": 8, "bottleneck": 4, "prototypes": 8, "local_crops": 0}),
        ("contextprediction", VIT, PUZZLE),  # its kept backbone looks at patches, the trained one does not
        ("simclr", {"kind": "resnet18", "image_size": 16}, {"hidden": 8, "dim": 4}),  # with batch norm
    ],
)
def test_a_run_from_random_weights_is_measured_without_changing_a_bit(photos, tmp_path, capsys, method, shape, own):
    states = []
    for measured in (0, 2):
        common = {"backbone": shape, "batch_size": 16, "epochs": 1, "measured": measured}
        config = pretrain_config.configure_for(method, {"common": common, method: own}, photos)
        pretrain.pretrain(config, photos.folder, out := tmp_path / str(measured))
        states.append(weights(out / "backbone"))
        lines = [json.loads(line) for line in (out / "measured.jsonl").read_text().splitlines()]
        assert len(lines) == (measured and measured + 1)  # also at the start
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not (out / "start.json").exists()
    assert all(0 <= line["value"] <= 1 <= line["effective_rank"] for line in lines)
    for line in lines:
        assert all(0 <= line[name] <= 1 for name in ("own_crop", "near_start", "near_pixels"))
        assert 0 <= line["alignment"] <= 4 <= 8 + line["uniformity"] <= 8
    assert lines[0]["near_start"] == 1
    assert ("kl_divergence" in lines[-1]) == (method == "dino")
    printed = capsys.readouterr().out
    assert f"{method}: {lines[0]['measured']}: {lines[0]['value']:.3f} after step 0, " in printed
    assert f"{method}: 0 % of the run, step 0: kNN accuracy {lines[0]['value']:.3f}; finds its own crop" in printed


@pytest.mark.parametrize(
    ("spread", "said"),
    [(1e-4, ["collapsed: all photos have nearly the same features"]), (1.0, []), (math.nan, [])],
)
def test_a_collapse_is_measured_and_named(photos, tmp_path, monkeypatch, tiny, spread, said):
    noise = torch.randn(len(photos), 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(points, "features", lambda _, __, ___, rows: 1 + spread * noise[rows])
    watched = snapshots.Snapshots(tmp_path, photos, 0, goes_on=False)
    assert watched.take(0, build(tiny), {}).collapsed is None  # untrained is not collapsed
    collapsed = watched.take(5, build(tiny), {}).collapsed
    line = watched.lines()[1]
    assert (line["effective_rank"] is None) == (line["alignment"] is None) == math.isnan(spread)
    assert [words.partition(" (")[0] for words in [collapsed] if words] == said
    (tmp_path / "out").mkdir()
    assert [words.partition(" (")[0] for words in watched.write(tmp_path / "out")[1:]] == said


def test_the_rank_of_a_few_photos_tells_nothing(photos, tmp_path, tiny):
    point, _ = measure(build(tiny), Watched(photos, 0, ("val",)))
    assert point.effective_rank is None


def test_a_run_that_saw_the_labels_is_measured_by_crops_where_val_has_few(photos, tmp_path, monkeypatch, tiny):
    watched = snapshots.Snapshots(tmp_path, photos, 0, labels_seen=True).watched
    assert "of train and val, recognized by another crop" in watched.words  # val has fewer than 30 labels
    need_labels(len(photos.rows("val", labeled=True)), monkeypatch)
    watched = snapshots.Snapshots(tmp_path, photos, 0, labels_seen=True).watched
    assert watched.words.endswith("of val, each classified by the others")
    need_labels(1000, monkeypatch)
    watched = snapshots.Snapshots(tmp_path, photos, 0, labels_seen=True, goes_on=False)
    watched.take(0, build(tiny), {})
    assert "of train and val, recognized by another crop" in watched.lines()[0]["measured"]


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_run_with_few_labels_is_measured_by_crops(goes_on, photos, tmp_path, monkeypatch):
    count = len(photos.rows("train", "val", labeled=True))
    need_labels(count, monkeypatch)
    assert snapshots.Snapshots(tmp_path, photos, 0, goes_on=goes_on).watched.by_labels
    need_labels(count + 1, monkeypatch)
    watched = snapshots.Snapshots(tmp_path, photos, 0, goes_on=goes_on).watched
    assert not watched.by_labels
    assert "recognized by another crop" in watched.words


def test_the_head_moves_first_then_lower_layers_most_slowly(start_folder, photos):
    config = configure("simclr", start_folder, photos, **SIMCLR)
    method = METHODS["simclr"].method(build(config.backbone), config.settings)
    start = Start(frozen=0.5, backbone_lr=0.1, layer_decay=0.5, patch_lr=0.2)
    optimizer = optim.build(method, config.settings.optimizer, 256, rates(method, start), start.frozen)
    for progress, moving in ((0.0, False), (0.49, False), (0.51, True)):
        optim.set_rates(optimizer, config.settings.optimizer, progress)
        factor = optim.multiplier(config.settings.optimizer.schedule, progress)
        found = {
            name: group["lr"] / (1e-3 * factor) for group in optimizer.param_groups for name in group["param_names"]
        }
        assert found["projector.0.weight"] == pytest.approx(1.0)
        expected = {
            "layers.0.": 0.1 * 0.25,
            "layers.1.": 0.1 * 0.5,
            "trunk.layernorm": 0.1,
            "patch_embeddings": 0.1 / 8 * 0.2,
        }
        for part, rate in expected.items():
            values = [value for name, value in found.items() if part in name]
            assert values
            assert values == pytest.approx([rate * moving] * len(values))


@pytest.mark.parametrize("family", ["vit", "timm_wrapper"])
def test_no_byte_of_the_backbone_changes_while_only_the_head_trains(family, photos, tmp_path, monkeypatch):
    """Running statistics of batch norm included."""
    measure_as(monkeypatch, 0.5, 0.6)  # so that the snapshot at the end is kept
    folder = checkpoint(family, tmp_path / "start")
    backbone = {"kind": "published", "from": str(folder), "image_size": 16}
    start = {"measured": 1, "frozen": 1.0}
    config = run("simclr", folder, photos, tmp_path / "run", start=start, backbone=backbone, **SIMCLR)
    assert json.loads((tmp_path / "run" / "start.json").read_text())["kept_step"] > 0
    before, kept = build(config.backbone).state_dict(), load(tmp_path / "run" / "backbone").state_dict()
    assert all(torch.equal(before[name], kept[name]) for name in before)


def test_batch_norm_normalizes_as_published_while_its_weights_train(photos, tmp_path):
    folder = checkpoint("timm_wrapper", tmp_path / "start")
    config = configure("simclr", folder, photos, backbone={"kind": "published", "from": str(folder)}, **SIMCLR)
    method = pretrain.setup(config, photos.folder, Accelerator(cpu=True)).method.train()
    assert not method.backbone.has_batch_norm
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    alone = torch.cat([method.backbone(image[None]) for image in pixels])
    torch.testing.assert_close(
        method.backbone(pixels), alone, rtol=LAYERS_FLOAT32, atol=LAYERS_FLOAT32
    )  # no photo changes another's features
    norms = [layer for layer in method.backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert norms
    assert all(layer.weight.requires_grad and not layer.training for layer in norms)


@pytest.mark.parametrize(("given", "resolved"), [(0.9, 0.996), (0.999, 0.999)])
def test_averages_of_published_weights_move_slowly(given, resolved, start_folder, photos):
    config = configure("byol", start_folder, photos, hidden=8, dim=4, momentum=given)
    assert config.settings.momentum == resolved
    assert configure("byol", start_folder, photos, momentum=given, start={"momentum": 0.5}).settings.momentum == given
    assert configure("byol", start_folder, photos, momentum=given, epochs=0).settings.momentum == given


def test_settings_of_a_checkpoint_that_does_not_exist_are_refused_with_their_section(photos, tmp_path):
    with pytest.raises(ValueError, match=r"params.yaml, section pretrain.common: no published backbone"):
        configure("simclr", tmp_path / "nowhere", photos)


def test_the_checkpoint_decides_the_pixels(start_folder):
    values = checkpoint_settings({"kind": "published", "from": str(start_folder)})
    assert values["mean"] == (0.4, 0.5, 0.6)
    assert (values["image_size"], values["patch_size"], values["square"]) == (16, 4, "squash")
