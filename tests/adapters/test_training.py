"""Each kind of classifier trains what it names, ends in the same bits after a stop, and is saved as it was measured."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.adapters import task as task_module
from components.adapters.fine_tuning import FineTuned, add_updates, lora_problem
from components.adapters.heads import Head, LinearHead
from components.adapters.kinds import RECIPES
from components.adapters.saved import check_key, load_classifier
from components.data.photos import Photos
from components.evaluation.features import features
from components.models import published
from components.models.backbone import Backbone, PublishedBackbone, ResNetBackbone, ViTBackbone, build, load
from components.precision import PRECISION
from components.stages.adapt import AdaptConfig, adapt, describe
from components.training import optim
from components.training.loop import Stopped
from components.training.lora import LoRA, merge
from components.training.start import Start, rates
from tests.families import MAKERS, checkpoint
from tests.tolerances import LAYERS_FLOAT32

KINDS = ("linear", "mlp", "attention", "lora", "full")
FAST: dict[str, Any] = {"epochs": 3, "batch_size": 16, "attention": {"heads": 4}, "mlp": {"hidden": 8}, "onnx": False}


@pytest.fixture(autouse=True)
def _few_val_photos_suffice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(task_module, "FEWEST_LABELS", 5)
    monkeypatch.setenv("SELFSIGHT_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with random weights, as pretrain writes it."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2)).save(folder / "backbone")
    return folder


def config(kind: str, **changes: Any) -> AdaptConfig:
    return AdaptConfig.model_validate({"method": "simclr", "kind": kind, **FAST, **changes})


@pytest.fixture(scope="module")
def adapted(pretrained: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What adapt writes for each kind."""
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_module, "FEWEST_LABELS", 5)
        patch.setenv("SELFSIGHT_SCRATCH", str(folder / "scratch"))
        patch.setenv(PRECISION, "fp32")  # as the saved classifier computes, which stock code runs in fp32
        for kind in KINDS:
            adapt(config(kind), pretrained, prepared, folder / kind)
    return {kind: folder / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_classifier_is_the_one_that_was_measured(
    kind: str, adapted: dict[str, Path], pretrained: Path, photos: Photos
) -> None:
    folder = adapted[kind]
    metrics = json.loads((folder / "metrics.json").read_text())
    saved = load_classifier(folder / "model")
    assert saved.classes == photos.classes
    test = photos.rows("test", labeled=True)
    probabilities = saved.probabilities(photos.squares(test, saved.size, saved.square))
    right = int((probabilities.argmax(1) == photos.labels(test)).sum())
    assert right / len(test) == metrics["accuracy"]["value"]
    if kind not in ("mlp", "attention"):  # which have not learned much in three epochs
        assert metrics["accuracy"]["value"] > metrics["majority"]["value"]
    losses = -probabilities.gather(1, photos.labels(test)[:, None]).log()
    assert float(losses.mean()) == pytest.approx(metrics["calibration"]["cross_entropy_after"], abs=LAYERS_FLOAT32)
    worst = metrics["mistakes"]
    assert len(worst) == min(12, len(test) - right)
    for one in worst:
        place = test.tolist().index(one["row"])
        assert one["predicted"] == photos.classes[int(probabilities[place].argmax())] != photos.label(one["row"])
        assert one["probability"] == pytest.approx(float(probabilities[place].max()), abs=LAYERS_FLOAT32)
    assert worst == sorted(worst, key=lambda one: -one["probability"])
    assert metrics["kind"] == json.loads((folder / "config.json").read_text())["kind"] == kind
    assert ("above_linear" in metrics) == ("kept_epoch" in metrics) == (kind != "linear")
    assert metrics["onnx"] == "left out: the setting onnx is false"
    check_key(folder, pretrained / "backbone")
    assert (folder / "log.jsonl").read_text()


def test_the_kinds_are_compared_with_one_linear_classifier(adapted: dict[str, Path]) -> None:
    metrics = {kind: json.loads((adapted[kind] / "metrics.json").read_text()) for kind in KINDS}
    epochs = {kind: [line["epoch"] for line in metrics[kind].get("epochs", [])] for kind in KINDS}
    assert epochs == {
        "linear": [],
        "mlp": [1, 2, 3],
        "attention": [1, 2, 3],
        "lora": [0, 1, 2, 3],
        "full": [0, 1, 2, 3],
    }
    for kind in KINDS[1:]:
        difference = metrics[kind]["accuracy"]["value"] - metrics[kind]["linear"]["value"]
        assert metrics[kind]["above_linear"]["value"] == pytest.approx(difference)
        ranks = [(line["accuracy"], -line["cross_entropy"]) for line in metrics[kind]["epochs"]]
        assert metrics[kind]["kept_epoch"] == epochs[kind][ranks.index(max(ranks))]
    assert len({json.dumps(one["few_labels"]) for one in metrics.values()}) == 1
    parameters = {kind: one["trained_parameters"] for kind, one in metrics.items()}
    assert parameters["linear"] == 17 * 2
    assert parameters["mlp"] == 17 * 8 + 9 * 2
    assert parameters["lora"] == 17 * 2 + 2 * 2 * 2 * 8 * 16  # blocks, projections, A and B, rank, width
    assert parameters["full"] > 5000


def test_only_the_weights_that_a_kind_names_change(adapted: dict[str, Path], pretrained: Path) -> None:
    before = load_file(pretrained / "backbone" / "model.safetensors")
    changed = {}
    for kind in KINDS:
        if kind in ("mlp", "attention"):
            after = load_file(adapted[kind] / "model" / "backbone" / "model.safetensors")
        else:
            after = load_file(adapted[kind] / "model" / "model.safetensors")
            after = {name.removeprefix("vit."): value for name, value in after.items() if "classifier" not in name}
        assert set(after) == set(before)
        changed[kind] = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert not changed["linear"] | changed["mlp"] | changed["attention"]
    if json.loads((adapted["lora"] / "metrics.json").read_text())["kept_epoch"]:
        assert changed["lora"] == {name for name in before if name.endswith(("query.weight", "value.weight"))}
    if json.loads((adapted["full"] / "metrics.json").read_text())["kept_epoch"]:
        assert changed["full"] >= {name for name in before if name.endswith(("query.weight", "dense.weight"))}


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_heads_that_start_at_random_learn(kind: str, pretrained: Path, prepared: Path, tmp_path: Path) -> None:
    fast = {"kind": "adamw", "lr": 0.05}
    metrics = adapt(config(kind, epochs=20, optimizer=fast), pretrained, prepared, tmp_path / "out")
    assert metrics["accuracy"]["value"] > metrics["majority"]["high"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_in_the_same_bits(
    kind: str,
    adapted: dict[str, Path],
    pretrained: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped: type[Any] = FineTuned if kind in ("lora", "full") else Head
    calls = 0

    def stop(_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:  # in the second epoch of four steps
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopped, "after_step", stop)
        if kind in ("mlp", "attention"):  # not the linear one that is trained before it
            calls = -RECIPES["linear"].epochs * (len(Photos(prepared).rows("train", labeled=True)) // 256 or 1)
        with pytest.raises(Stopped):
            adapt(config(kind), pretrained, prepared, tmp_path / "out")
    adapt(config(kind), pretrained, prepared, tmp_path / "out")
    for file in sorted(adapted[kind].rglob("*")):
        if file.is_file() and file.name != "log.jsonl":  # which has times
            again, first = (tmp_path / "out" / file.relative_to(adapted[kind])).read_bytes(), file.read_bytes()
            if file.name == "metrics.json":  # its command names the folder
                again, first = (_without_command(metrics) for metrics in (again, first))
            assert again == first, file.name


def _without_command(metrics: bytes) -> bytes:
    found = json.loads(metrics)
    assert found.pop("command").startswith("python -m components.stages.adapt")
    return json.dumps(found).encode()


def test_a_linear_classifier_is_trained_as_a_plain_loop_trains_it(
    pretrained: Path, prepared: Path, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PRECISION, "fp32")  # as the plain loop
    monkeypatch.setattr(task_module, "FEWEST_LABELS", 1000)  # so that no temperature divides the weights
    adapt(config("linear"), pretrained, prepared, tmp_path / "out")
    backbone = load(pretrained / "backbone").as_stock()
    vectors, train = features(backbone, photos), photos.rows("train", labeled=True)
    bank, labels, recipe = vectors[train], photos.labels(train), RECIPES["linear"].optimizer
    head = LinearHead(bank, 2)
    optimizer, per_epoch = optim.build(head, recipe, 16), len(train) // 16
    for step in range(3 * per_epoch):
        order = np.random.default_rng((0, step // per_epoch)).permutation(len(train))
        places = order[step % per_epoch * 16 :][:16]
        optim.set_rates(optimizer, recipe, step / (3 * per_epoch))
        head((bank[places], labels[places]))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    saved = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert torch.equal(saved["classifier.weight"], head.deployed().weight)
    assert torch.equal(saved["classifier.bias"], head.deployed().bias)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["calibration"]["temperature"] == 1
    assert metrics["calibration"]["fitted_on"].startswith("nothing: fewer than")


def test_without_val_the_last_epoch_is_kept(
    pretrained: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "FEWEST_LABELS", 1000)
    metrics = adapt(config("mlp", epochs=1), pretrained, prepared, tmp_path / "out")
    assert "kept_epoch" not in metrics
    assert not any("kept" in line for line in describe(metrics))


def test_class_weights_are_said_and_change_the_classifier(
    adapted: dict[str, Path], pretrained: Path, prepared: Path, tmp_path: Path
) -> None:
    metrics = adapt(config("linear", balance="weights"), pretrained, prepared, tmp_path / "out")
    assert metrics["balance"] == "weights"
    assert describe(metrics)[0] == "kind linear, balance weights: 34 numbers trained"
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (adapted["linear"], tmp_path / "out")]
    assert not torch.equal(weights[0]["classifier.weight"], weights[1]["classifier.weight"])


def checkpoint_backbone(family: str, folder: Path) -> Backbone:
    values = published.resolve({"kind": "published", "from": str(checkpoint(family, folder))})
    return build(PublishedBackbone(**values))


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name in MAKERS if name != "timm_wrapper"])
def test_merged_updates_give_the_logits_of_unmerged_ones(family: str, tmp_path: Path) -> None:
    backbone = checkpoint_backbone(family, tmp_path / "from").as_stock().eval()
    size = backbone.config.image_size
    pixels = torch.randint(0, 256, (3, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    head = LinearHead(torch.randn(9, backbone.dim), 2)
    torch.nn.init.normal_(head.linear.weight)
    objective = FineTuned(backbone, head).eval()
    start = objective.logits(pixels)
    adapter = add_updates(objective, LoRA(rank=2, alpha=4), seed=0)
    assert torch.allclose(objective.logits(pixels), start, atol=LAYERS_FLOAT32)  # B is zero
    for name, parameter in objective.named_parameters():
        assert parameter.requires_grad == ("lora_" in name or name.startswith("head.linear."))
        if "lora_B" in name:
            parameter.normal_()
    unmerged = objective.logits(pixels)
    assert (unmerged - start).abs().max() > 0.01
    merge(adapter)
    assert torch.allclose(objective.logits(pixels), unmerged, atol=10 * LAYERS_FLOAT32)
    assert not [name for name, _ in objective.named_parameters() if "lora" in name]


def test_lora_needs_an_attention(pretrained: Path, prepared: Path, tmp_path: Path) -> None:
    for backbone in (
        build(ResNetBackbone(kind="resnet18", image_size=16)),
        checkpoint_backbone("timm_wrapper", tmp_path / "timm"),
    ):
        assert "this backbone" in str(lora_problem(backbone))
        with pytest.raises(ValueError, match=r"called q_proj, v_proj, qkv, and this backbone \(.*\).*; try kind: full"):
            add_updates(FineTuned(backbone, LinearHead(torch.randn(4, backbone.dim), 2)), LoRA(), seed=0)
    build(ResNetBackbone(kind="resnet18", image_size=16)).save(tmp_path / "resnet" / "backbone")
    with pytest.raises(ValueError, match=r"this backbone \(resnet18\)"):
        adapt(config("lora"), tmp_path / "resnet", prepared, tmp_path / "out")


def test_lower_blocks_are_tuned_more_slowly() -> None:
    backbone = build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2))
    objective = FineTuned(backbone, LinearHead(torch.randn(4, 16), 2))
    start = Start(frozen=0.0, backbone_lr=1.0, layer_decay=0.5, patch_lr=1.0)
    recipe = RECIPES["full"]
    optimizer = optim.build(objective, recipe.optimizer, 256, rates(objective, start))
    peaks = {name: group["peak"] / 5e-4 for group in optimizer.param_groups for name in group["param_names"]}
    assert recipe.optimizer.lr == 5e-4
    for name, peak in peaks.items():
        part = name.removeprefix("backbone.trunk.")
        expected = {"embed": 1 / 8, "layers.0": 1 / 4, "layers.1": 1 / 2, "layernorm": 1, "head": 1}
        (rate,) = (value for prefix, value in expected.items() if part.startswith(prefix))
        assert peak == pytest.approx(rate), name
    assert len(peaks) == len(list(objective.parameters()))


def test_full_keeps_the_statistics_of_batch_norm(prepared: Path, tmp_path: Path) -> None:
    """And a ResNet for small photos stays torchvision's."""
    torch.manual_seed(0)
    build(ResNetBackbone(kind="resnet18", image_size=16)).save(tmp_path / "pre" / "backbone")
    metrics = adapt(config("full", epochs=1), tmp_path / "pre", prepared, tmp_path / "out")
    before = load_file(tmp_path / "pre" / "backbone" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "running" in name)
    saved, photos = load_classifier(tmp_path / "out" / "model"), Photos(prepared)
    test = photos.rows("test", labeled=True)
    right = saved.probabilities(photos.squares(test, 16)).argmax(1) == photos.labels(test)
    assert int(right.sum()) / len(test) == metrics["accuracy"]["value"]


def test_a_family_without_a_class_of_transformers_is_saved_in_parts(prepared: Path, tmp_path: Path) -> None:
    checkpoint_backbone("dinov3_vit", tmp_path / "from").save(tmp_path / "pre" / "backbone")
    metrics = adapt(config("linear"), tmp_path / "pre", prepared, tmp_path / "out")
    assert metrics["accuracy"]["of"] > 0
    model = tmp_path / "out" / "model"
    assert json.loads((model / "config.json").read_text())["head"] == "linear, of the feature"
    assert load_classifier(model).classes == ("green", "red")
