from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.connector.answering import generate_answers, load_vlm
from tests import stock_process
from tests.connector import stock_answers, tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
QUESTIONS = ["?", tiny.COLOR, "a much longer question than the others are, is it not?", tiny.SIDE, "x", tiny.COLOR]


@pytest.mark.slow
def test_a_process_without_torchvision_gives_the_same_answers(tmp_path: Path) -> None:
    """The other towers are in test_every_tower.py; timm's need torchvision."""
    model, processor = tiny.vlm(tmp_path)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    paths = [tmp_path / f"{number}.png" for number in range(len(QUESTIONS))]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)  # of the tower's size: resizing differs a little without torchvision
    pairs = [(str(path), question) for path, question in zip(paths, QUESTIONS, strict=True)]
    (tmp_path / "models.json").write_text(json.dumps({"model": pairs}))
    expected = generate_answers(model, processor, [Image.open(path) for path in paths], QUESTIONS, stock_answers.TOKENS)
    assert len(set(expected)) > 3
    stock = stock_process.run(Path(stock_answers.__file__), tmp_path, torchvision=False)
    answers, settings = stock["model"]
    assert answers == dict.fromkeys(answers, expected)
    assert settings == stock_answers.settings(model, processor)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json.*run the connect stage first"):
        load_vlm(tmp_path)
