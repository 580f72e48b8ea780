"""The classifier on a published backbone, as a stock class, gives the logits that were trained."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from components.adapters.classifier import problem, save
from components.models import published
from components.models.backbone import PublishedBackbone, build
from tests.families import MAKERS, checkpoint
from tests.tolerances import LAYERS_FLOAT32

CLASSES = ("one", "two", "three")


@torch.no_grad()
@pytest.mark.parametrize("family", MAKERS)
def test_a_stock_class_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    values = published.resolve({"kind": "published", "from": str(checkpoint(family, tmp_path / "from"))})
    backbone = build(PublishedBackbone(**values)).eval().as_stock()
    if reason := problem(backbone):
        assert family == "dinov3_vit"
        assert "no image classifier for a dinov3_vit" in reason
        return
    size = backbone.config.image_size
    photos = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = backbone(photos)
    assert features.shape == (2, backbone.dim)
    head = nn.Linear(backbone.dim, len(CLASSES))
    save(tmp_path / "classifier", backbone, head, CLASSES)
    stock = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier").eval()
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "classifier")(list(photos), return_tensors="pt")
    assert torch.allclose(stock(pixels["pixel_values"]).logits, head(features), atol=LAYERS_FLOAT32)
    assert stock.config.id2label == dict(enumerate(CLASSES))
