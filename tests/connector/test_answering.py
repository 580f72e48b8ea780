from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from components.connector.answering import answers, load_vlm
from tests.connector import tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STRANGER = """
import sys

class NotOurs:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("components", "flows", "tests"):
            raise ModuleNotFoundError(f"{name} is ours")

sys.meta_path.insert(0, NotOurs())
folder, picture, question, chat, hidden = sys.argv[1:]
if hidden == "hidden":
    sys.modules["torchvision"] = None
import torch
try:
    import torchvision
except ModuleNotFoundError:
    pass
except RuntimeError as error:  # a CPU torch beside a CUDA torchvision
    if "operator torchvision::nms does not exist" not in str(error):
        raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
from transformers import pipeline

ask = pipeline("image-text-to-text", model=folder)
if chat == "chat":
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    said = ask(text=[{"role": "user", "content": content}], max_new_tokens=8, return_full_text=False)
else:
    said = ask(images=picture, text="<image>" + question, max_new_tokens=8, return_full_text=False)
assert "components" not in sys.modules
print("SAID", repr(said[0]["generated_text"].strip()))
"""


@pytest.mark.parametrize(
    ("chat", "torchvision"),
    [("plain", "seen"), pytest.param("chat", "hidden", marks=pytest.mark.slow)],
)
def test_a_stranger_runs_the_saved_folder(tmp_path: Path, chat: str, torchvision: str) -> None:
    """A fresh process with none of our code gives the same text, through transformers' own pipeline. Also T10."""
    model, processor = tiny.vlm(tmp_path)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    picture = Image.effect_noise((50, 40), 90).convert("RGB")
    picture.save(tmp_path / "photo.png")
    here = answers(*load_vlm(tmp_path / "model"), [picture], [tiny.COLOR], 8)[0]
    given = [str(tmp_path / "model"), str(tmp_path / "photo.png"), tiny.COLOR, chat, torchvision]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *given], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert here
    assert done.stdout.strip().endswith(f"SAID {here!r}")


def test_answers_do_not_depend_on_the_company_they_are_in(tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path)
    pictures = [Image.effect_noise((20, 20 + n), 90).convert("RGB") for n in range(3)]
    questions = ["?", tiny.COLOR, "a much longer question than the others are, is it not?"]
    together = answers(model, processor, pictures, questions, 6)
    alone = [answers(model, processor, [p], [q], 6)[0] for p, q in zip(pictures, questions, strict=True)]
    assert together == alone


def test_no_model_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json.*run the connect stage first"):
        load_vlm(tmp_path)
