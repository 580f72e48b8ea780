"""Every tower × all that connect can train: the saved model answers in transformers alone as it did after training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from components.connector import towers
from components.connector.answering import generate_answers
from components.connector.collate import Collator
from components.connector.towers import as_sequence, features_of, image_size
from components.connector.trained import Trained
from components.models.backbone import load
from components.precision import PRECISION
from components.stages import connect as stage
from tests import stock_process
from tests.conftest import draw
from tests.connector import stock_answers, tiny
from tests.connector.towers import TOWERS, Tower
from tests.tolerances import LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LOGITS = 10 * LAYERS_FLOAT32  # they are up to 10
QUESTIONS = [
    tiny.SIDE,
    tiny.SIDE,
    "a much longer question than the others are, is it not?",
]  # two are padded in a batch


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Language models and a prepared data set. Removed afterwards, as the trained models are half a gigabyte."""
    # so that every machine trains nearly the same weights, with which no two tokens are almost equally likely
    monkeypatch.setenv(PRECISION, "fp32")
    tiny.llm_folder(tmp_path / "llm-tied", tied=True)
    tiny.llm_folder(tmp_path / "llm-untied", tied=False)
    questions = tiny.prepared(tmp_path / "prepare", count=20) / "questions.parquet"
    pl.read_parquet(questions).filter(question=tiny.COLOR).write_parquet(questions)
    yield tmp_path
    shutil.rmtree(tmp_path)


def connect(tower: Tower, mode: Trained, name: str, folder: Path) -> tuple[Any, Any, dict[str, Tensor]]:
    """Runs the stage for a few steps. Returns its model and processor, as they were saved, and the weights before."""
    kept: list[Any] = []

    def assemble(*args: Any, **options: Any) -> Any:
        model, processor = stage_assemble(*args, **options)
        kept.extend([model, processor, {name: value.clone() for name, value in model.state_dict().items()}])
        return model, processor

    stage_assemble = stage.assemble
    llm = folder / ("llm-tied" if tower.tied else "llm-untied")
    settings = stage.ConnectConfig(
        method="any", llm=str(llm), steps=2, batch_size=4, trained=mode, image_size=tower.image_size
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "assemble", assemble)
        stage.connect(settings, folder / name, folder / "prepare", folder / name / mode)
    model, processor, before = kept
    return model, processor, before


def draw_photos(folder: Path, size: int) -> list[Path]:
    """Two photos of the tower's size, and one that has to be resized and loses its edges or its shape."""
    sides = [(size, size), (size, size), (90, 70)]
    return [draw(folder / f"{number}.png", number, shape, hue=number) for number, shape in enumerate(sides)]


@torch.no_grad()
def assert_tower_is_the_backbone(name: str, folder: Path, model: Any, processor: Any, photo: Path) -> None:
    """The tower's tokens are those of the backbone, and the prompt has a place for each, all counted by hand too."""
    size = image_size(processor.image_processor)
    assert as_sequence(features_of(model.model.vision_tower, size)).shape[1] == TOWERS[name].tokens, name
    prefix = Collator(processor, 64).prefix(tiny.SIDE)
    assert prefix.count(processor.image_token_id) == TOWERS[name].tokens, name
    square = torch.frombuffer(bytearray(Image.open(photo).tobytes()), dtype=torch.uint8).view(1, size, size, 3)
    patches = load(folder / name / "backbone").eval().tokens(square.permute(0, 3, 1, 2))
    pixels = processor.image_processor(Image.open(photo), return_tensors="pt")["pixel_values"]
    seen = as_sequence(model.model.vision_tower(pixels).last_hidden_state)[:, -patches.shape[1] :]
    # a ResNet-50 with random weights gives up to 40, and what its sums cancel is larger still
    assert (seen - patches).abs().max() < LAYERS_FLOAT32 * patches.abs().max(), name


def assert_only_the_chosen_weights_moved(mode: Trained, model: Any, before: dict[str, Tensor], case: str) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys(), case  # nothing of peft is left
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    layer = {"paligemma": "linear", "fast_vlm": "linear_1"}[model.config.model_type]
    projector = {f"model.multi_modal_projector.{layer}.{kind}" for kind in ("weight", "bias")}
    llm = {name for name in before if name.startswith(("model.language_model.", "lm_head."))}
    products = {name for name in llm if name.endswith("_proj.weight")}
    assert len(products) == 14  # seven in each of two layers
    assert moved == projector | {"projector": set(), "lora": products, "all": llm}[mode], case


@torch.no_grad()
def forced_logits(model: Any, processor: Any, photo: Image.Image, question: str, ids: list[int]) -> Tensor:
    """Returns the logits [T, V] of an answer's tokens as in training: by our prompt, alone, and without a cache."""
    collator = Collator(processor, 64)
    prefix = collator.prefix(question)
    types = {"token_type_ids": torch.tensor([[0] * len(prefix) + [1] * len(ids)])} if collator.has_prefix_mask else {}
    pixels = processor.image_processor(photo, return_tensors="pt")["pixel_values"]
    logits: Tensor = model(input_ids=torch.tensor([prefix + ids]), pixel_values=pixels, use_cache=False, **types).logits
    return logits[0, len(prefix) - 1 : -1]


def expect(model: Any, processor: Any, paths: list[Path]) -> tuple[list[str], list[Tensor], dict[str, Any]]:
    """Returns the answers, the logits of their tokens, and all settings, of the model as training left it."""
    photos = [Image.open(path) for path in paths]
    ids, _ = stock_answers.chatted(model, processor, photos, QUESTIONS)
    logits = [forced_logits(model, processor, *asked) for asked in zip(photos, QUESTIONS, ids, strict=True)]
    answers = generate_answers(model, processor, photos, QUESTIONS, stock_answers.TOKENS)
    return answers, logits, stock_answers.settings(model, processor)


def test_every_tower_answers_in_stock_classes_as_after_training(folder: Path) -> None:
    expected, asked, kinds = {}, {}, set()
    for name, tower in TOWERS.items():
        tower.make(folder / name)
        kinds.add(json.loads((folder / name / "backbone" / "config.json").read_text())["model_type"])
        for mode in tower.modes:
            case = f"{name}/{mode}/model"
            model, processor, before = connect(tower, mode, name, folder)
            paths = draw_photos(folder / name / "photos", image_size(processor.image_processor))
            assert_only_the_chosen_weights_moved(mode, model, before, case)
            if mode == tower.modes[0]:
                assert_tower_is_the_backbone(name, folder, model, processor, paths[0])
            expected[case] = expect(model, processor, paths)
            assert expected[case][2]["tied"] is tower.tied, case
            asked[case] = [(str(path), question) for path, question in zip(paths, QUESTIONS, strict=True)]
    assert kinds == set(towers.TOWERS)  # the table has every kind of backbone that connect takes
    (folder / "models.json").write_text(json.dumps(asked))
    stock = stock_process.run(Path(stock_answers.__file__), folder)  # one process, as each needs seconds to start
    for case, (answers, logits, settings) in expected.items():
        assert stock[case][1] == settings, case
        assert stock[case][0] == dict.fromkeys(stock[case][0], answers), case
        saved = load_file(folder / case / stock_answers.LOGITS)
        for place, values in saved.items():
            error = (values - logits[int(place[-1])]).abs().max()
            assert error < LOGITS, (case, place, error)
        # the first two ask the same about two photos
        assert (saved["batch 0"][0] - saved["batch 1"][0]).abs().max() > 10 * LOGITS, case
