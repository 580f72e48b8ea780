from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from components.config import read_section
from components.connector.answering import load_vlm
from components.connector.collate import Collator, chat, squares_for
from components.connector.objective import NO_INPUTS, Connector
from components.connector.packing import IGNORE
from components.connector.vlm import assemble
from components.data.photos import Photos
from components.models.backbone import ResNetBackbone, build
from components.models.backbone import load as load_backbone
from components.precision import PRECISION
from components.stages import connect as module
from components.stages.connect import ConnectConfig, connect, loader
from components.training.distributed import MICRO_BATCHES
from components.training.micro_batches import split
from components.training.monitor import Run
from tests.connector import tiny
from tests.tolerances import LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSIGHT_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model, two backbones (EYES) and a prepared data set."""
    folder = tmp_path_factory.mktemp("artifacts")
    tiny.llm_folder(folder / "llm", tied=False)
    tiny.backbone(folder / "simclr")
    tiny.cnn(folder / "published")
    tiny.prepared(folder / "prepare")
    return folder


EYES = pytest.mark.parametrize("eyes", ["simclr", "published"])  # a transformer, a CNN


def config(artifacts: Path, **settings: Any) -> ConnectConfig:
    defaults = {"method": "simclr", "llm": str(artifacts / "llm"), "steps": 20, "batch_size": 8}
    return ConnectConfig(**{**defaults, **settings})


def test_the_section_in_params_yaml_is_valid() -> None:
    settings = read_section("connect", ConnectConfig)
    assert settings.llm == "smollm2"
    assert settings.optimizer.clip == 1.0  # T9
    assert settings.optimizer.schedule.warmup * settings.steps >= 20  # with fewer warm-up steps the loss stays high


def test_connect_writes_a_stock_folder(artifacts: Path, tmp_path: Path) -> None:
    out = tmp_path / "connect"
    metrics = connect(config(artifacts, trained="projector"), artifacts / "simclr", artifacts / "prepare", out)
    assert {"config.json", "log.jsonl", "metrics.json", "model"} == {path.name for path in out.iterdir()}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert np.isfinite([metrics["loss"], metrics["val_loss"], metrics["val_gap"]]).all()
    assert json.loads((out / "config.json").read_text())["optimizer"]["clip"] == 1.0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert metrics["loss"] == pytest.approx(np.mean([line["loss"] for line in lines]))
    assert not list((tmp_path / "scratch" / "connect").iterdir())  # the state of a finished run is removed

    modes = {file.stat().st_mode for file in (out / "model").iterdir()}
    assert len(modes) == 1  # whoever may read the folder may read the weights
    model, _ = load_vlm(out / "model")
    tower = load_backbone(artifacts / "simclr" / "backbone").trunk.state_dict()  # type: ignore[union-attr]
    kept = model.model.vision_tower.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in tower.items())
    llm = tiny.llm(tied=False)
    rows = llm.config.vocab_size
    assert torch.equal(model.lm_head.weight[:rows], llm.lm_head.weight)
    layers = model.model.language_model.layers.state_dict()
    assert all(torch.equal(value, layers[name]) for name, value in llm.model.layers.state_dict().items())


def test_a_seed_gives_the_same_weights_each_time(artifacts: Path, tmp_path: Path) -> None:
    runs = [connect(config(artifacts), artifacts / "simclr", artifacts / "prepare", tmp_path / name) for name in "ab"]
    assert runs[0] == runs[1]
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    other = connect(config(artifacts, seed=1), artifacts / "simclr", artifacts / "prepare", tmp_path / "c")
    assert other["loss"] != runs[0]["loss"]


def stop_after_saving(monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    """Runs connect, which saves its state at step 10, until it is interrupted at step 13."""
    real = module.loader

    def stopping(*args: Any) -> Any:
        load = real(*args)

        def stop(step: int) -> Any:
            if step == 13:
                raise KeyboardInterrupt
            return load(step)

        return stop

    with monkeypatch.context() as patch:
        patch.setattr(module, "loader", stopping)
        patch.setattr(module, "Run", lambda *args: dataclasses.replace(Run(*args), save_every=10))
        with pytest.raises(KeyboardInterrupt):
            connect(*args)


@pytest.mark.parametrize(
    ("eyes", "trained"), [("simclr", "projector"), ("published", "projector"), ("published", "lora"), ("simclr", "all")]
)
def test_a_stopped_run_is_resumed(
    eyes: str,
    trained: str,
    artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The saved state holds what is trained and no frozen weights."""
    inputs = config(artifacts, method=eyes, trained=trained), artifacts / eyes, artifacts / "prepare"
    whole = connect(*inputs, tmp_path / "whole")
    stop_after_saving(monkeypatch, *inputs, tmp_path / "resumed")
    (state,) = (tmp_path / "scratch" / "connect").glob("*/step-10.safetensors")
    kinds = {"projector": ("projector",), "lora": ("projector", ".*lora_[AB]"), "all": ("projector", "llm")}[trained]
    with safe_open(state, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("module.")]  # noqa: SIM118 (a file, not a dict)
    assert all(any(re.match(rf"module\.{kind}\b", name) for kind in kinds) for name in names)
    width = load_backbone(artifacts / eyes / "backbone").dim
    if trained == "projector":
        assert state.stat().st_size < 4 * 4 * (width * 64 + 64)  # weights and two moments
    capsys.readouterr()
    resumed = connect(*inputs, tmp_path / "resumed")
    assert "resumed" in capsys.readouterr().out
    assert resumed == whole
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert first == second


def test_a_run_is_not_resumed_with_another_language_model_of_the_same_name(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(artifacts, llm=str(tiny.llm_folder(tmp_path / "llm", tied=False)))
    stop_after_saving(monkeypatch, settings, artifacts / "simclr", artifacts / "prepare", tmp_path / "out")
    tiny.llm_folder(tmp_path / "llm", tied=False, seed=1)
    connect(settings, artifacts / "simclr", artifacts / "prepare", tmp_path / "out")
    assert "resumed" not in capsys.readouterr().out


def test_batches_depend_on_the_step_only_and_are_divided_among_processes(artifacts: Path, tmp_path: Path) -> None:
    photos = Photos(artifacts / "prepare")
    questions = photos.questions("train")
    _, processor = assemble(artifacts / "simclr" / "backbone", tiny.llm(), tiny.tokenizer())
    collator, settings = Collator(processor, 64), config(artifacts)
    squares = partial(photos.squares, size=16)
    single = loader(squares, questions, collator, settings, (0, 1))
    repeated = loader(squares, questions, collator, settings, (0, 1))
    shared = [loader(squares, questions, collator, settings, (rank, 2)) for rank in range(2)]
    repeated(0)
    for step in (7, 3, len(questions) // 8 + 1):
        batch, other = single(step), repeated(step)
        assert all(torch.equal(batch[name], other[name]) for name in batch)
        parts = [load(step)["pixels"] for load in shared]
        assert torch.equal(torch.cat(parts), batch["pixels"])
        assert batch["pixels"].dtype == torch.uint8


@EYES
def test_the_loss_is_the_mean_over_all_answer_tokens_whatever_divides_the_batch(
    eyes: str, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process, the mean of two, and of two micro-batches; a CNN's questions are packed in the first two."""
    photos = Photos(artifacts / "prepare")
    model, processor = assemble(artifacts / eyes / "backbone", tiny.llm(), tiny.tokenizer())
    objective, collator = Connector(model, processor), Collator(processor, 64)
    args = squares_for(processor, photos), photos.questions("train"), collator, config(artifacts)
    load = loader(*args, (0, 1))
    step = next(step for step in range(18) if load(step)["weight"].std() > 0.1)  # where answers differ in length
    whole = load(step)
    targets = whole["labels"][:, 1:]
    with torch.no_grad():
        inputs = {name: whole[name] for name in whole if name not in NO_INPUTS}
        pixels = (whole["pixels"] - objective.mean) / objective.std
        logits = model(**inputs, pixel_values=pixels).logits[:, :-1]
        expected = cross_entropy(logits[targets != IGNORE], targets[targets != IGNORE])
        answers = [len(losses) for losses in (objective.losses(whole), whole["weight"])]
        assert answers == [8, 8]
        shares = [objective(loader(*args, (rank, 2))(step))["loss"] for rank in range(2)]
        monkeypatch.setenv(MICRO_BATCHES, "2")
        halves = [objective(half)["loss"] for half in split(loader(*args, (0, 1))(step), 2)]
    for losses in ([objective(whole)["loss"]], shares, halves):
        torch.testing.assert_close(torch.stack(losses).mean(), expected, atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)


def test_without_questions_connect_skips_and_says_why(artifacts: Path, tmp_path: Path) -> None:
    data = tiny.prepared(tmp_path / "mute", questions=False)
    out = tmp_path / "connect"
    metrics = connect(config(artifacts, llm="/missing"), artifacts / "simclr", data, out)
    assert metrics == {"skipped": "there are no questions, labels or captions to learn from"}
    assert {path.name for path in out.iterdir()} == {"config.json", "metrics.json"}


def test_with_a_resnet_connect_skips_and_says_why(artifacts: Path, tmp_path: Path) -> None:
    build(ResNetBackbone(kind="resnet18", image_size=32)).save(tmp_path / "r" / "backbone")
    settings = config(artifacts, llm="/missing")
    metrics = connect(settings, tmp_path / "r", artifacts / "prepare", tmp_path / "out")
    assert "first layer of a resnet18 for images of at most 64 pixels" in metrics["skipped"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "metrics.json"}


@pytest.mark.parametrize(("size", "pixels", "places"), [(96, 96, 3 * 3), (None, 128, 4 * 4)])
def test_a_cnn_sees_squares_of_the_size_in_the_settings_or_with_sixteen_places(
    size: int | None, pixels: int, places: int, artifacts: Path, tmp_path: Path
) -> None:
    settings = config(artifacts, steps=1, image_size=size)
    connect(settings, artifacts / "published", artifacts / "prepare", tmp_path)
    model, processor = load_vlm(tmp_path / "model")
    assert Collator(processor, 8).prefix(tiny.COLOR).count(processor.image_token_id) == places  # 2 x 2 at 64 pixels
    image = Image.new("RGB", (20, 30))
    inputs = processor.apply_chat_template(
        [chat(tiny.COLOR, image)], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, pixels, pixels)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_a_transformer_sees_squares_of_one_size(artifacts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image_size: 96: only a CNN .* this backbone is a vit"):
        connect(config(artifacts, image_size=96), artifacts / "simclr", artifacts / "prepare", tmp_path)


def test_fewer_questions_than_a_batch_are_refused(artifacts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 4096 is larger than the 144 training questions"):
        connect(config(artifacts, batch_size=4096), artifacts / "simclr", artifacts / "prepare", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("eyes", "trained"), [("simclr", "projector"), ("published", "lora")])
def test_two_processes_give_the_metrics_of_one(
    eyes: str, trained: str, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PRECISION, "fp32")  # in bf16 each rounding of a sum in another order is 0.4 %
    settings: dict[str, Any] = {
        "method": eyes,
        "llm": str(artifacts / "llm"),
        "steps": 20,
        "batch_size": 8,
        "trained": trained,
    }
    one = connect(ConnectConfig(**settings), artifacts / eyes, artifacts / "prepare", tmp_path / "1")
    (tmp_path / "params.yaml").write_text(json.dumps({"connect": settings}))  # JSON is YAML
    args = ["--backbone", str(artifacts / eyes), "--data", str(artifacts / "prepare"), "--out", "2"]
    command = [sys.executable, "-m", "components.stages.connect", *args]
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root, "SELFSIGHT_PROCESSES": "2", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    two = json.loads((tmp_path / "2" / "metrics.json").read_text())
    assert two == pytest.approx(one, rel=LAYERS_FLOAT32)


def test_the_command_line_prints_the_error_without_a_traceback(tmp_path: Path) -> None:
    args = ["--backbone", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "components.stages.connect", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("run the pretrain stage first")
    assert "Traceback" not in done.stderr
