"""Stages as they are run: from one folder to the next."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import pipeline

from components.adapters.heads import LinearHead
from components.adapters.target import confusion
from components.data.photos import Photos
from components.evaluation import linear
from components.evaluation.features import features
from components.methods import METHODS
from components.models.backbone import load
from components.reporting.formats import percent
from components.stages import pretrain as stage
from components.stages.adapt import AdaptConfig, adapt
from components.stages.evaluate import EvaluateConfig, evaluate
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from components.stages.pretrain import epoch_rows, pretrain
from components.stages.pretrain_config import configure
from tests.conftest import draw
from tests.tolerances import LAYERS_FLOAT32, PATIENCE

ROOT = Path(__file__).parents[2]
PARAMS = {
    "common": {
        "backbone": {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
        "batch_size": 16,
        "epochs": 2,
    },
    "simclr": {"hidden": 8, "dim": 4},
    "moco": {"queue": 32, "dim": 4},
    "mocoscriptstyle": {"queue": 32, "dim": 4},
    "contextprediction": {"patch": 8, "gap": 1, "jitter": 1, "grids": 1, "smallest": 4, "hidden": 8, "epochs": 1},
    "mocov3": {"hidden": 8, "dim": 4},
    "byol": {"hidden": 8, "dim": 4},
    "simsiam": {"dim": 8, "predictor_hidden": 4},
    "barlowtwins": {"dim": 8},
    "vicreg": {"dim": 8},
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFSIGHT_SCRATCH", str(tmp_path / "scratch"))


@pytest.mark.parametrize("method", ["simclr", "moco", "mocoscriptstyle"])
def test_pretrain_leaves_a_folder_that_explains_itself(method, prepared, tmp_path):
    pretrain(configure(method, PARAMS), prepared, tmp_path / "out")
    ran = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (ran["method"], ran["batch_size"], ran["settings"]["dim"]) == (method, 16, 4)
    assert load(tmp_path / "out" / "backbone").dim == 16
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 2 * (len(Photos(prepared).rows("train")) // 16)
    assert not list((tmp_path / "scratch" / "pretrain").iterdir())  # nothing is left behind


def test_the_same_run_gives_the_same_backbone_and_another_seed_another(prepared, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = configure("simclr", {**PARAMS, "common": {**PARAMS["common"], "seed": seed}})
        pretrain(config, prepared, tmp_path / name)
        weights.append((tmp_path / name / "backbone" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"common": {**PARAMS["common"], "batch_size": 500}}, "batch_size 500 is larger than the .* training photos"),
        ({"moco": {"queue": 500, "dim": 4}}, "queue 500 is longer than the data"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(changes, message, prepared, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(configure("moco", {**PARAMS, **changes}), prepared, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photos_smaller_than_the_views_give_a_warning(prepared, tmp_path, capsys):
    large = {**PARAMS["common"], "backbone": {**PARAMS["common"]["backbone"], "image_size": 40}, "epochs": 1}
    pretrain(configure("simclr", {**PARAMS, "common": large}), prepared, tmp_path / "out")
    assert "photos have 32 pixels on the shorter side, and image_size is 40" in capsys.readouterr().out


def test_every_epoch_has_every_row_once_in_another_order():
    import numpy as np

    rows = np.arange(10, 60)
    first, second = epoch_rows(rows, 0, 0), epoch_rows(rows, 0, 1)
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_rows(rows, 0, 0).tolist()


def test_evaluate_and_adapt_on_labeled_pictures(prepared, tmp_path):
    pretrain(configure("simclr", PARAMS), prepared, tmp_path / "pre")
    metrics = evaluate(EvaluateConfig(neighbors=5), tmp_path / "pre", prepared, tmp_path / "eval")
    named = {
        "majority",
        "pixels",
        "random",
        "backbone",
        "health",
        "blocks",
        "selection",
        "seeds",
        "kept",
        "dense",
        "manifest",
        "command",
    }
    assert named == set(metrics)
    assert len(metrics["blocks"]) == 1  # the last block's neighbors are the backbone's
    assert metrics["blocks"][-1]["knn"]["value"] == metrics["backbone"]["knn"]["value"]
    near = json.loads((tmp_path / "eval" / "neighbors.json").read_text())
    photos = Photos(prepared)
    assert sorted(map(int, near)) == photos.rows("test").tolist()
    train = set(photos.rows("train").tolist())
    assert all(len(found["rows"]) == 5 and set(found["rows"]) <= train for found in near.values())
    assert all(1 >= first >= last >= -1 for found in near.values() for first, last in pairwise(found["cosines"]))

    adapted = adapt(AdaptConfig(method="simclr", epochs=30, onnx=False), tmp_path / "pre", prepared, tmp_path / "adapt")
    total = len(photos.rows("test", labeled=True))
    assert sum(map(sum, adapted["confusion"])) == adapted["accuracy"]["of"] == total
    right = sum(adapted["confusion"][i][i] for i in range(2))
    assert right / total == adapted["accuracy"]["value"] > adapted["majority"]["value"]

    stock = pipeline("image-classification", model=str(tmp_path / "adapt" / "model"))
    for row in photos.rows("test")[:6].tolist():
        label = stock(Image.fromarray(photos[row].permute(1, 2, 0).numpy()))[0]["label"]
        assert label in ("red", "green")
    agree = [
        stock(Image.fromarray(photos[row].permute(1, 2, 0).numpy()))[0]["label"] == photos.label(row)
        for row in photos.rows("test").tolist()
    ]
    assert sum(agree) == right  # the saved folder is the model that was measured


def test_a_head_learns_on_what_the_saved_model_computes(prepared, tmp_path):
    """A backbone that is judged by patches, and by the mean of their tokens, becomes a stock classifier too."""
    pretrain(configure("contextprediction", PARAMS), prepared, tmp_path / "pre")
    config = tmp_path / "pre" / "backbone" / "config.json"
    values = json.loads(config.read_text())
    assert values["patches"] == 8
    config.write_text(json.dumps({**values, "pool": "mean"}))
    adapted = adapt(
        AdaptConfig(method="contextprediction", epochs=10, onnx=False), tmp_path / "pre", prepared, tmp_path / "adapt"
    )
    adapted_config = json.loads((tmp_path / "adapt" / "model" / "config.json").read_text())
    assert (adapted_config["pool"], adapted_config["patches"]) == ("class", 0)
    photos, stock = Photos(prepared), pipeline("image-classification", model=str(tmp_path / "adapt" / "model"))
    counts = torch.zeros(2, 2, dtype=torch.long)
    for row in photos.rows("test", labeled=True).tolist():
        answer = stock(Image.fromarray(photos[row].permute(1, 2, 0).numpy()))[0]["label"]
        counts[photos.classes.index(photos.label(row)), photos.classes.index(answer)] += 1
    assert counts.tolist() == adapted["confusion"]


def test_a_folded_head_gives_the_same_logits(prepared, tmp_path):
    torch.manual_seed(0)
    bank = torch.randn(50, 6) * 4 + 2
    head = LinearHead(bank, 3)
    torch.nn.init.normal_(head.linear.weight)
    assert torch.allclose(head.logits(bank), head.deployed()(bank), atol=LAYERS_FLOAT32)


def test_an_adapted_resnet_is_torchvisions(prepared, tmp_path):
    from safetensors.torch import load_file

    shape = {"kind": "resnet18", "image_size": 16}
    pretrain(
        configure("simclr", {**PARAMS, "common": {**PARAMS["common"], "backbone": shape, "epochs": 1}}),
        prepared,
        tmp_path / "pre",
    )
    adapt(AdaptConfig(method="simclr", epochs=2, onnx=False), tmp_path / "pre", prepared, tmp_path / "adapt")
    weights = load_file(tmp_path / "adapt" / "model" / "model.safetensors")
    assert weights["fc.weight"].shape == (2, 512)
    assert json.loads((tmp_path / "adapt" / "model" / "config.json").read_text())["classes"] == ["green", "red"]


def test_the_page_is_drawn_after_one_method(prepared, tmp_path):
    """As a command, where adapt, connect and answer have not run."""
    artifacts = tmp_path / "artifacts"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"methods": ["simclr", "moco"], "report": {}}))
    shutil.copytree(prepared, artifacts / "prepare")
    trained = artifacts / "pretrain" / "simclr"
    pretrain(configure("simclr", PARAMS), prepared, trained)
    metrics = evaluate(EvaluateConfig(neighbors=5), trained, prepared, artifacts / "evaluate" / "simclr")
    command = [sys.executable, "-m", "components.stages.report", "--artifacts", "artifacts", "--out", "report"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "report" / "index.html").read_text()
    assert f"Best method: <b>simclr</b>, with a kNN accuracy of {percent(metrics['selection']['knn'])}" in html
    for text in ("not trained yet: dvc repro evaluate@moco", "not run yet: dvc repro adapt", "dvc repro answer"):
        assert text in html
        assert text in done.stdout
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert numbers == {
        "knn": {"simclr": metrics["backbone"]["knn"]["value"]},
        "linear": {"simclr": metrics["backbone"]["linear"]["value"]},
        "effective_rank": {"simclr": metrics["health"]["effective_rank"]},
        "knn_compared": {},
        "linear_compared": {},
        "n": metrics["backbone"]["knn"]["of"],
        "seeds": {"simclr": 1},
        "command": "dvc repro",
    }
    comparisons = json.loads((tmp_path / "report" / "comparisons.json").read_text())
    others = [{pair["first"], pair["second"]} - {"simclr"} for pair in comparisons["knn"]]
    assert others == [{"majority"}, {"pixels"}, {"random"}]
    for pair in comparisons["knn"]:
        assert pair["words"] in done.stdout
    header, *rows = (tmp_path / "report" / "losses" / "simclr.csv").read_text().splitlines()
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert header == "step,loss"
    assert rows == [f"{line['step']},{line['loss']}" for line in log]


def test_evaluate_where_val_has_no_photos(folder, tmp_path):
    data = tmp_path / "data"
    source, split = DataConfig(source=str(folder), size=32), PrepareConfig(val_share=0)
    prepare(ResolvedConfig(data=source, prepare=split), data, data)
    assert not len(Photos(data).rows("val"))
    pretrain(configure("simclr", PARAMS), data, tmp_path / "pre")
    metrics = evaluate(EvaluateConfig(), tmp_path / "pre", data, tmp_path / "eval")
    assert metrics["backbone"]["linear"]["penalty"] == linear.MIDDLE
    assert "training photos" in metrics["selection"]["on"]


def test_without_labels_every_stage_says_what_it_cannot_give(tmp_path):
    for index in range(60):
        draw(tmp_path / "album" / f"{index}.png", index)
    data, captions = tmp_path / "data", tmp_path / "album" / "captions.csv"
    prepare(
        ResolvedConfig(data=DataConfig(source=str(tmp_path / "album"), size=32), prepare=PrepareConfig()), data, data
    )
    pretrain(configure("simclr", PARAMS), data, tmp_path / "pre")
    metrics = evaluate(EvaluateConfig(), tmp_path / "pre", data, tmp_path / "eval")
    assert set(metrics) == {"health", "not_measured", "seeds", "kept", "dense", "manifest", "command"}
    assert "no labels" in next(iter(metrics["not_measured"].values()))
    assert "no labels" in adapt(AdaptConfig(method="simclr"), tmp_path / "pre", data, tmp_path / "adapt")["skipped"]
    captions.write_text("path,caption\n" + "".join(f"{index}.png,one of {index % 3}\n" for index in range(60)))
    prepare(
        ResolvedConfig(data=DataConfig(source=str(tmp_path / "album"), size=32), prepare=PrepareConfig()), data, data
    )
    metrics = evaluate(EvaluateConfig(), tmp_path / "pre", data, tmp_path / "eval")
    # captions say which photos belong together
    assert set(metrics) == {"health", "not_measured", "retrieval", "seeds", "kept", "dense", "manifest", "command"}
    assert 0 <= metrics["retrieval"]["by_caption"]["map_at_r"]["value"] <= 1


def test_confusion_counts_rows_true_and_columns_said():
    assert confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2) == [[1, 1], [0, 1]]


@pytest.mark.slow
def test_two_ranks_train_and_say_so(prepared, tmp_path):
    """The stage as DVC runs it, with SELFSIGHT_PROCESSES=2: torchrun, gloo, and the same number of steps."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"methods": ["moco"], "pretrain": PARAMS}))
    command = [sys.executable, "-m", "components.stages.pretrain", "--method", "moco"]
    environment = {**os.environ, "SELFSIGHT_PROCESSES": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--data", str(prepared), "--out", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "processes: 2" in done.stdout
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 2 * (len(Photos(prepared).rows("train")) // 16)
    assert load(tmp_path / "out" / "backbone").dim == 16


def test_a_stage_refuses_with_exit_code_2(prepared, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"pretrain": PARAMS}))
    command = [sys.executable, "-m", "components.stages.pretrain", "--method", "mocco", "--data", str(prepared)]
    done = subprocess.run(
        [*command, "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"no method 'mocco'; known: {', '.join(METHODS)}" in done.stderr


def test_features_of_a_saved_backbone_are_those_of_the_trained_one(prepared, tmp_path):
    pretrain(configure("simclr", PARAMS), prepared, tmp_path / "pre")
    photos = Photos(prepared)
    once, again = (features(load(tmp_path / "pre" / "backbone"), photos) for _ in range(2))
    assert torch.equal(once, again)


def test_a_method_that_needs_labels_is_trained_on_labeled_photos_only(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "data")
    with np.load(prepared / "index.npz") as index:
        held = dict(index)
    unlabeled = Photos(prepared).rows("train")[::3]
    held["labels"][unlabeled] = -1
    np.savez(tmp_path / "data" / "index.npz", **held)
    seen = set()

    def make_batch(photos, rows, *args):
        seen.update(rows.tolist())
        return stage_make_batch(photos, rows, *args)

    stage_make_batch = stage.make_batch
    monkeypatch.setattr(stage, "make_batch", make_batch)
    for method, expected in (("supervised", False), ("simclr", True)):
        seen.clear()
        pretrain(configure(method, PARAMS), tmp_path / "data", tmp_path / method)
        assert bool(seen & set(unlabeled.tolist())) is expected
    assert json.loads((tmp_path / "supervised" / "config.json").read_text())["settings"]["classes"] == 2
    held["labels"][:] = -1
    np.savez(tmp_path / "data" / "index.npz", **held)
    with pytest.raises(ValueError, match="supervised training needs labels"):
        pretrain(configure("supervised", PARAMS), tmp_path / "data", tmp_path / "none")
