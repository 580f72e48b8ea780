"""Every family of published transformers as the eyes of a language model, in a stock class."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from components.connector.vlm import TOWERS, assemble, tower_problem
from components.models import published
from components.models.backbone import PublishedBackbone, build
from tests.connector import tiny
from tests.families import MAKERS, checkpoint
from tests.tolerances import LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PHOTO = Image.radial_gradient("L").convert("RGB").resize((40, 30))


def saved(family: str, folder: Path) -> Path:
    values = published.resolve({"kind": "published", "from": str(checkpoint(family, folder / "from"))})
    build(PublishedBackbone(**values)).save(folder / "backbone")
    return folder / "backbone"


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name in MAKERS if name != "timm_wrapper"])
def test_it_sees_the_backbones_tokens_and_loads_as_a_stock_class(family: str, tmp_path: Path) -> None:
    backbone = saved(family, tmp_path)
    model, processor = assemble(backbone, tiny.llm(), tiny.tokenizer())
    inputs = processor(images=[[PHOTO]], text=["<image>" + tiny.COLOR], return_tensors="pt")
    tower = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    own = published.pretrained.read(str(backbone))[0].eval()(inputs["pixel_values"]).last_hidden_state
    assert torch.allclose(tower, own, atol=LAYERS_FLOAT32)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == tower.shape[1]
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    again = AutoProcessor.from_pretrained(tmp_path / "model")(
        images=[[PHOTO]], text=["<image>" + tiny.COLOR], return_tensors="pt"
    )
    assert torch.equal(again["pixel_values"], inputs["pixel_values"])
    assert torch.allclose(loaded(**again).logits, model(**inputs).logits, atol=LAYERS_FLOAT32)


def test_a_cnn_is_refused_with_the_list(tmp_path: Path) -> None:
    reason = tower_problem(saved("timm_wrapper", tmp_path))
    assert reason
    assert f"({', '.join(TOWERS)}), and this one is a timm_wrapper" in reason
