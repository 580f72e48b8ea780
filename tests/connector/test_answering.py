from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.connector.answering import generate_answers, load_vlm
from components.connector.towers import image_size
from tests import stock_process
from tests.connector import stock_answers, tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
QUESTIONS = ["?", tiny.COLOR, "a much longer question than the others are, is it not?", tiny.SIDE, "x", tiny.COLOR]


@pytest.fixture(scope="module", params=[tiny.backbone, tiny.cnn], ids=["paligemma", "fast_vlm"])
def eyes(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def folder(eyes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, and photos with a question each."""
    folder = tmp_path_factory.mktemp("saved")
    model, processor = tiny.vlm(folder, eyes=eyes)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    pairs = []
    for number, question in enumerate(QUESTIONS):
        path = folder / f"{number}.png"
        size = image_size(processor.image_processor)
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)  # of the tower's size: resizing differs a little without torchvision
        pairs.append([str(path), question])
    (folder / "photos.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture(scope="module", params=["torchvision", pytest.param("no torchvision", marks=pytest.mark.slow)])
def stock(request: pytest.FixtureRequest, folder: Path, eyes: Any) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Returns answers and settings from a new process that has transformers and not this project."""
    torchvision = request.param == "torchvision"
    if not torchvision and eyes is tiny.cnn:
        pytest.skip("timm needs torchvision")
    return tuple(stock_process.run(Path(stock_answers.__file__), folder, torchvision=torchvision))


def test_stock_code_gives_the_same_answers_in_batches(folder: Path, stock: Any) -> None:
    """The questions differ in length. With padding on the right, a batch gave other and worse answers."""
    photos = [Image.open(folder / f"{number}.png") for number in range(len(QUESTIONS))]
    expected = generate_answers(*load_vlm(folder / "model"), photos, QUESTIONS, stock_answers.TOKENS)
    assert len(set(expected)) > 3
    for way, actual in stock[0].items():
        assert actual == expected, way


def test_every_setting_survives_saving(tmp_path: Path, stock: Any, eyes: Any) -> None:
    """What our code sets on model, processor, tokenizer and generation config is what stock code reads."""
    expected = stock_answers.settings(*tiny.vlm(tmp_path, eyes=eyes))
    assert set(stock[1]) == set(expected)
    for name, value in expected.items():
        assert stock[1][name] == value, name
    assert stock[1]["tokenizer"]["padding_side"] == "left"


def test_answers_do_not_depend_on_the_batch(tmp_path: Path, eyes: Any) -> None:
    model, processor = tiny.vlm(tmp_path, eyes=eyes)
    photos = [Image.effect_noise((20, 20 + n), 90).convert("RGB") for n in range(3)]
    batch = generate_answers(model, processor, photos, QUESTIONS[:3], 6)
    single = [generate_answers(model, processor, [p], [q], 6)[0] for p, q in zip(photos, QUESTIONS[:3], strict=True)]
    assert batch == single


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json.*run the connect stage first"):
        load_vlm(tmp_path)
