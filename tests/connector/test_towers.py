"""Every family of published transformers as the eyes of a language model, in a stock class."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from components.connector.collate import chat
from components.connector.towers import as_sequence
from components.connector.vlm import assemble
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


def asked(processor: Any) -> Any:
    """Returns a model's inputs for a question about PHOTO."""
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(chat(tiny.COLOR, PHOTO), **options)


@torch.no_grad()
@pytest.mark.parametrize("family", MAKERS)
def test_it_sees_the_backbones_tokens_and_loads_as_a_stock_class(family: str, tmp_path: Path) -> None:
    backbone = saved(family, tmp_path)
    model, processor = assemble(backbone, tiny.llm(), tiny.tokenizer())
    inputs = asked(processor)
    tower = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    own = published.pretrained.read(str(backbone))[0].eval()(inputs["pixel_values"]).last_hidden_state
    assert torch.allclose(tower, own, atol=LAYERS_FLOAT32)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == as_sequence(tower).shape[1]
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    again = asked(AutoProcessor.from_pretrained(tmp_path / "model"))
    assert torch.equal(again["pixel_values"], inputs["pixel_values"])
    assert torch.allclose(loaded(**again).logits, model(**inputs).logits, atol=LAYERS_FLOAT32)
