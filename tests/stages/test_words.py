"""The stage words, on photos of one color each, and the search by words."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import VisionTextDualEncoderModel

from components.commands import search as module_search
from components.commands.cli import command_line
from components.commands.photo_uses import PhotoUses
from components.commands.search import Folders, TextSearch, paths
from components.config import read_section
from components.data.photos import Photos
from components.data.texts import class_text
from components.models.backbone import ResNetBackbone, build, load
from components.precision import uses_bf16
from components.stages import words as module
from components.stages.words import WordsConfig, words
from components.training.monitor import Run
from tests import stock_process
from tests.connector import tiny
from tests.tolerances import BF16, LAYERS_FLOAT32

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSIGHT_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model, two backbones and a prepared data set."""
    folder = tmp_path_factory.mktemp("artifacts")
    tiny.llm_folder(folder / "llm")
    tiny.backbone(folder / "simclr")
    tiny.cnn(folder / "published")
    tiny.prepared(folder / "prepare")
    (folder / "prepare" / "config.json").write_text(json.dumps({"data": {"source": "scenes"}}))
    return folder


@pytest.fixture(scope="module")
def trained(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the stage wrote, by backbone."""
    outs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        for eyes in ("simclr", "published"):
            outs[eyes] = tmp_path_factory.mktemp(eyes) / "words"
            words(config(artifacts, method=eyes), artifacts / eyes, artifacts / "prepare", outs[eyes])
    return outs


def config(artifacts: Path, **settings: Any) -> WordsConfig:
    defaults = {"method": "simclr", "llm": str(artifacts / "llm"), "steps": 120, "batch_size": 16, "dim": 16}
    optimizer = {"kind": "adamw", "lr": 0.01, "clip": 1.0}
    return WordsConfig(**{**defaults, "optimizer": optimizer, **settings})


def copied(artifacts: Path, out: Path, **columns: Any) -> Path:
    """Returns a copy of the prepared data with other columns of questions."""
    shutil.copytree(artifacts / "prepare", out)
    pl.read_parquet(out / "questions.parquet").filter(**columns).write_parquet(out / "questions.parquet")
    return out


def test_the_section_in_params_yaml_is_valid() -> None:
    settings = read_section("words", WordsConfig)
    assert (settings.llm, settings.batch_size) == ("smollm2", 256)


@pytest.mark.parametrize(("eyes", "accuracy"), [("simclr", 0.9), ("published", 0.7)])  # the CNN is untrained
def test_it_names_and_finds_photos_of_four_colors(
    artifacts: Path, trained: dict[str, Path], eyes: str, accuracy: float
) -> None:
    out = trained[eyes]
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "log.jsonl", "metrics.json", "model", "photos.safetensors")
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["photos"], metrics["texts"]) == (48, 8)  # four captions, four class names
    named = metrics["zero_shot"]
    assert named["top1"]["value"] > accuracy
    assert named["majority"]["value"] == 0.25
    assert (named["chance"], named["top1"]["of"]) == (0.25, 16)
    found = metrics["retrieval"]
    assert (found["photos"], found["texts"]) == (16, 4)  # each caption once
    assert found["photo_to_text"]["1"]["value"] > accuracy
    assert set(found["photo_to_text"]) == {"1"}  # with k = 5 all four would be found
    assert found["text_to_photo"]["1"]["chance"] == pytest.approx(4 / 16)
    assert found["photo_to_text"]["1"]["shuffled"] < 0.7
    labels, shown = Photos(artifacts / "prepare").label, metrics["found"]
    assert (len(shown), {len(one["rows"]) for one in shown}) == (4, {8})
    assert sum(str(labels(row)) in one["text"] for one in shown for row in one["rows"][:4]) > 10  # of 16
    modes = {file.stat().st_mode for file in (*out.glob("*.safetensors"), *(out / "model").iterdir())}
    assert len(modes) == 1
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]


def test_a_stock_pipeline_gives_the_same(artifacts: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    """In a fresh process that cannot import this project."""
    photos = Photos(artifacts / "prepare")
    rows, paths = photos.rows("test")[:5], []
    for row in rows.tolist():
        paths.append(str(tmp_path / f"{row}.png"))
        Image.fromarray(photos[row].permute(1, 2, 0).numpy()).save(paths[-1])
    texts = [class_text(name) for name in photos.classes]
    asked: dict[str, Any] = {"photos": paths, "names": photos.classes, "texts": texts}
    asked["documented"] = (ROOT / "docs" / "loading.md").read_text()
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    for eyes, out in trained.items():
        shutil.copytree(out / "model", tmp_path / "models" / eyes)
    stock = stock_process.run(Path(__file__).with_name("stock_words.py"), tmp_path)
    for eyes, out in trained.items():
        vectors, close = load_file(out / "photos.safetensors")["photos"][rows], BF16 if uses_bf16() else LAYERS_FLOAT32
        torch.testing.assert_close(torch.tensor(stock[eyes]["photos"]), vectors, atol=close, rtol=close)
        scores = torch.tensor(stock[eyes]["logits"]).softmax(1)
        named = torch.tensor([[line[name] for name in photos.classes] for line in stock[eyes]["named"]])
        torch.testing.assert_close(named, scores, atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)  # TEMPLATE is its default
        right = [photos.classes[place] == photos.label(row) for place, row in zip(named.argmax(1), rows, strict=True)]
        assert sum(right) > 2


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    artifacts: Path, trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after_62(*args: Any) -> None:
        objective, load_batch, optimizer, settings, run, acc = args
        short = Run(run.name, run.steps, run.batch_size, run.log, run.state, run.seed, 50, 1)

        def load_some(step: int) -> Any:
            if step == 62:
                raise KeyboardInterrupt
            return load_batch(step)

        fit(objective, load_some, optimizer, settings, short, acc)

    fit = module.fit
    monkeypatch.setattr(module, "fit", stop_after_62)
    with pytest.raises(KeyboardInterrupt):
        words(config(artifacts), artifacts / "simclr", artifacts / "prepare", tmp_path / "words")
    monkeypatch.setattr(module, "fit", fit)
    words(config(artifacts), artifacts / "simclr", artifacts / "prepare", tmp_path / "words")
    ends = [load_file(out / "model" / "model.safetensors") for out in (tmp_path / "words", trained["simclr"])]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert not list((tmp_path / "scratch" / "words").iterdir())


def test_what_cannot_be_learned_is_skipped_with_the_reason(artifacts: Path, tmp_path: Path) -> None:
    """Photos without captions teach class names, those without labels captions, and those without either nothing."""
    from components.data.entries import DESCRIBE

    def run(data: Path, backbone: Path = artifacts / "simclr", **settings: Any) -> dict[str, Any]:
        return words(config(artifacts, steps=2, **settings), backbone, data, tmp_path / "out")

    named = run(copied(artifacts, tmp_path / "names", question=tiny.COLOR))
    assert named["texts"] == 4
    assert "fewer than two test photos have captions" in named["not_measured"]["retrieval"]
    assert "zero_shot" in named
    told = run(artifacts / "prepare", class_names=False)
    assert (told["texts"], told["zero_shot"]["names"]) == (4, "not learned")
    reason = run(tmp_path / "names", class_names=False)
    assert reason == {"skipped": "no words: the training photos have no captions or labels"}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == reason
    one = copied(artifacts, tmp_path / "one", row=0)
    assert run(one, class_names=False)["skipped"] == "no words: only one training photo has a caption or a label"

    unlabeled = copied(artifacts, tmp_path / "captions", question=DESCRIBE)
    with np.load(unlabeled / "index.npz") as index:
        held = dict(index)
    np.savez(unlabeled / "index.npz", **{**held, "labels": np.full_like(held["labels"], -1)})
    told = run(unlabeled)
    assert told["retrieval"]["photos"] == 16
    assert "labeled" in told["not_measured"]["zero_shot"] or "no labels" in told["not_measured"]["zero_shot"]

    build(ResNetBackbone(kind="resnet18", image_size=16)).save(tmp_path / "small" / "backbone")
    assert "first layer of a ResNet" in run(artifacts / "prepare", tmp_path / "small")["skipped"]
    pl.read_parquet(unlabeled / "questions.parquet").with_columns(answer=pl.lit("a photo")).write_parquet(
        unlabeled / "questions.parquet"
    )
    assert run(unlabeled)["skipped"] == "no words: all training photos have one text"


def test_batches_depend_on_the_step_only_and_know_all_texts_of_a_photo(artifacts: Path) -> None:
    from components.connector.text_encoder import text_tokenizer
    from components.data.texts import training_texts
    from components.stages.words import loader

    texts = training_texts(Photos(artifacts / "prepare"), class_names=True)
    assert texts[0] == ["a bright picture, all red", "This is a photo of red."]
    load_batch = loader(config(artifacts), torch.arange(80.0)[:, None], texts, text_tokenizer(tiny.tokenizer()))
    rows = [load_batch(step)[0].flatten().int().tolist() for step in range(3)]
    assert sorted(row for some in rows for row in some) == sorted(texts)  # an epoch
    features, tokens, matches = load_batch(1)
    assert torch.equal(load_batch(1)[0], features)
    assert matches.shape == (16, len(tokens["input_ids"]))
    assert matches.any(1).all()
    for row, own in zip(features.flatten().int().tolist(), matches.sum(1).tolist(), strict=True):
        assert own in (1, 2), row


def stage_folders(artifacts: Path, words: Path) -> Folders:
    return Folders(artifacts / "simclr", artifacts / "prepare", artifacts / "embed", words)


def test_search_by_text_finds_the_nearest_photos(artifacts: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    photos = Photos(artifacts / "prepare")
    folders = stage_folders(artifacts, trained["simclr"])
    found = TextSearch(folders).search("all blue", 12)
    assert len(found.rows) == 12
    assert sum(photos.label(row) == "blue" for row in found.rows) > 9
    assert found.cosines == sorted(found.cosines, reverse=True)
    assert len(TextSearch(folders).search("all blue", 1000).rows) == len(photos)
    with pytest.raises(ValueError, match="a few words are needed"):
        TextSearch(folders).search("  ", 3)
    with pytest.raises(ValueError, match="the stage words has not run; run: dvc repro words"):
        TextSearch(stage_folders(artifacts, tmp_path)).search("red", 1)
    with pytest.raises(ValueError, match="is no prepared data set"):
        TextSearch(replace(folders, data=tmp_path / "moved")).search("red", 1)
    other = copied(artifacts, tmp_path / "other")
    pl.read_parquet(other / "manifest.parquet").head(3).write_parquet(other / "manifest.parquet")
    with pytest.raises(ValueError, match="is not from the photos in"):
        TextSearch(replace(folders, data=other)).search("red", 1)
    (tmp_path / "metrics.json").write_text(json.dumps({"skipped": "no words: no captions"}))
    with pytest.raises(ValueError, match="no vectors to search: no words: no captions"):
        TextSearch(stage_folders(artifacts, tmp_path)).search("red", 1)
    (other / "config.json").write_text(json.dumps({"data": {"source": str(tmp_path)}}))
    shutil.copy(artifacts / "prepare" / "manifest.parquet", other / "manifest.parquet")
    assert paths(other, [1]) == [str(tmp_path / "1.png")]  # where the photo is
    (other / "config.json").write_text(json.dumps({"data": {"source": str(tmp_path / "moved")}}))
    assert paths(other, [1]) == ["1.png"]
    assert paths(artifacts / "prepare", [1]) == ["1.png"]  # drawn, so that it is nowhere


def test_the_app_reads_the_model_of_words_once(artifacts: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(trained["simclr"], tmp_path / "words")
    uses = PhotoUses(stage_folders(artifacts, tmp_path / "words"), tmp_path, tmp_path)
    first = uses.by_text("all blue", 3)
    shutil.rmtree(tmp_path / "words")
    assert uses.by_text("all blue", 3) == first
    assert {one.label for one in first} == {"blue"}


def test_search_is_a_command_with_the_folders_of_dvc_yaml(
    artifacts: Path,
    trained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "dvc.yaml").symlink_to(ROOT / "dvc.yaml")
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
    shutil.copytree(trained["simclr"], tmp_path / "artifacts" / "words")
    (tmp_path / "artifacts" / "prepare").symlink_to(artifacts / "prepare")
    monkeypatch.chdir(tmp_path)
    asked = ["--text", "all red", "--k", "3"]
    assert command_line("search", asked) == ["-m", "components.commands.search", *asked]
    monkeypatch.setattr(sys, "argv", ["search", *asked, "--page", "found.html"])
    module_search.main()
    found = TextSearch(stage_folders(artifacts, trained["simclr"])).search("all red", 3)
    lines = [f"{cosine:.3f}  {row}.png" for row, cosine in zip(found.rows, found.cosines, strict=True)]
    assert capsys.readouterr().out.splitlines() == lines
    html = (tmp_path / "found.html").read_text()
    assert html.count("<figure>") == 3
    assert "all red" in html
    shutil.rmtree(tmp_path / "artifacts" / "words")
    for arguments, message in (
        (asked, "search: artifacts/words/metrics.json is missing"),
        (["a.png"], "there is no file or folder a.png"),
        ([".", *asked], "and not both"),
        ([], 'give photos, or --text "WORDS"'),
        (["--text", "red", "--k", "0"], "--k is 0"),
        (["."], "artifacts/embed holds no vectors of photos: embed.json is missing; run: dvc repro embed"),
    ):
        monkeypatch.setattr(sys, "argv", ["search", *arguments])
        with pytest.raises(SystemExit) as stopped:
            module_search.main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_the_backbone_is_not_trained(artifacts: Path, trained: dict[str, Path]) -> None:
    kept = VisionTextDualEncoderModel.from_pretrained(trained["simclr"] / "model").vision_model.state_dict()
    backbone = load(artifacts / "simclr" / "backbone").trunk.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(kept[name], value) for name, value in backbone.items())
