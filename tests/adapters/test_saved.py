"""A saved classifier of any form gives the logits that it was saved with, here and by the code of docs/loading.md."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor

from components.adapters.classifier import save
from components.adapters.heads import Attention
from components.adapters.onnx_file import write_onnx
from components.adapters.pixel_classifier import PixelClassifier
from components.adapters.saved import load_classifier
from components.models import published
from components.models.backbone import Backbone, PublishedBackbone, ResNetBackbone, ViTBackbone, build
from tests.adapters.stock_images import documented
from tests.adapters.test_stock_images import colored_squares, train_statistics
from tests.families import checkpoint
from tests.tolerances import LAYERS_FLOAT32

ROOT = Path(__file__).parents[2]
CLASSES = ("one", "two", "three")
VIT = ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2, square="crop")
OWN = {
    "own vit": VIT,
    "small resnet": ResNetBackbone(kind="resnet18", image_size=16),
    "large resnet": ResNetBackbone(kind="resnet18", image_size=72),
}


@pytest.fixture(scope="module")
def docs() -> dict[str, Any]:
    return documented((ROOT / "docs" / "loading.md").read_text(encoding="utf-8"))


def backbone_named(name: str, folder: Path) -> Backbone:
    torch.manual_seed(0)
    if name in OWN:
        backbone = build(OWN[name])
    else:
        values = published.resolve({"kind": "published", "from": str(checkpoint(name, folder))})
        backbone = build(PublishedBackbone(**values))
    train_statistics(backbone)
    return backbone.as_stock().eval()


def squares_for(backbone: Backbone) -> Tensor:
    return colored_squares(3, backbone.config.image_size)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "mlp", "attention"])
@pytest.mark.parametrize("name", [*OWN, "dinov2", "dinov3_vit", "siglip", "timm_wrapper"])
def test_every_form_gives_the_same_logits(name: str, kind: str, docs: dict[str, Any], tmp_path: Path) -> None:
    backbone = backbone_named(name, tmp_path / "from")
    squares = squares_for(backbone)
    head: nn.Module = nn.Linear(backbone.dim, 3)
    if kind == "mlp":
        head = nn.Sequential(nn.Linear(backbone.dim, 8), nn.GELU(), nn.Linear(8, 3))
    if kind == "attention":
        head = Attention(backbone.tokens(squares).shape[2], 3, 4)
    for parameter in head.parameters():
        parameter.mul_(4)  # so that outputs differ
    expected = PixelClassifier(backbone, head, "tokens" if kind == "attention" else "feature").eval()(squares)
    folder = tmp_path / "model"
    save(folder, backbone, head, CLASSES)
    saved = load_classifier(folder)
    assert (saved.classes, saved.size, saved.square) == (CLASSES, backbone.config.image_size, backbone.config.square)
    assert expected.std(0).min() > 10 * LAYERS_FLOAT32
    assert torch.allclose(saved.model(squares), expected, atol=LAYERS_FLOAT32)
    if "resnet" not in name and (folder / "head.safetensors").is_file():
        pixels = AutoImageProcessor.from_pretrained(folder / "backbone")(list(squares), return_tensors="pt")
        found = docs["load_parts"](folder)(pixels["pixel_values"])
        assert torch.allclose(found, expected, atol=LAYERS_FLOAT32)
        assert json.loads((folder / "config.json").read_text())["classes"] == list(CLASSES)
    modes = {file.stat().st_mode for file in folder.rglob("*") if file.is_file()}
    assert len(modes) == 1


def test_the_documented_code_reads_the_onnx_file(docs: dict[str, Any], tmp_path: Path) -> None:
    backbone = backbone_named("own vit", tmp_path)
    model = PixelClassifier(backbone, nn.Linear(backbone.dim, 3), "feature").eval()
    logging.disable(logging.DEBUG)  # of which the exporter writes so much that it takes half of the time
    write_onnx(model, CLASSES, tmp_path / "classifier.onnx")
    logging.disable(logging.NOTSET)
    squares = squares_for(backbone)
    names, shares = docs["classify"](tmp_path, squares.numpy())
    assert names == list(CLASSES)
    with torch.no_grad():
        assert np.allclose(shares, model(squares).softmax(1), atol=LAYERS_FLOAT32)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no classifier: config.json is missing; .*: dvc repro adapt"):
        load_classifier(tmp_path)
