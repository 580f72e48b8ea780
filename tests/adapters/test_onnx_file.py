"""The ONNX file of a classifier gives the logits of the classifier, without torch and at every batch size."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from components.adapters import onnx_file
from components.adapters.heads import Attention
from components.adapters.onnx_file import onnx_problem, write_onnx
from components.adapters.pixel_classifier import PixelClassifier
from components.models import published
from components.models.backbone import Backbone, PublishedBackbone, ResNetBackbone, ViTBackbone, build
from tests import stock_process
from tests.adapters import onnx_logits
from tests.adapters.test_stock_images import colored_squares, train_statistics
from tests.families import checkpoint
from tests.tolerances import LAYERS_FLOAT32

CLASSES = ("one", "zwei", "três")
VIT = ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2, mean=(0.2, 0.5, 0.6), std=(0.3, 0.2, 0.1))


def timm_cnn(folder: Path) -> Backbone:
    values = published.resolve({"kind": "published", "from": str(checkpoint("timm_wrapper", folder))})
    return build(PublishedBackbone(**values))


def classifiers(folder: Path) -> dict[str, PixelClassifier]:
    """One of each kind of head, on backbones of each kind."""
    torch.manual_seed(0)
    backbones = {
        "vit": build(VIT),
        "resnet18": build(ResNetBackbone(kind="resnet18", image_size=16)),
        "timm": timm_cnn(folder / "timm_from"),
    }
    for backbone in backbones.values():
        train_statistics(backbone.as_stock())
    dim = backbones["timm"].dim
    heads: dict[str, nn.Module] = {
        "vit": Attention(16, len(CLASSES), 4),
        "resnet18": nn.Linear(512, len(CLASSES)),
        "timm": nn.Sequential(nn.Linear(dim, 8), nn.GELU(), nn.Linear(8, len(CLASSES))),
    }
    return {
        name: PixelClassifier(backbone, heads[name], "tokens" if name == "vit" else "feature").eval()
        for name, backbone in backbones.items()
    }


def test_onnxruntime_gives_the_same_logits_without_torch(tmp_path: Path) -> None:
    expected = {}
    logging.disable(logging.DEBUG)  # of which the exporter writes so much that it takes half of the time
    for name, model in classifiers(tmp_path).items():
        (tmp_path / name).mkdir()
        squares = colored_squares(7, model.config.image_size)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        write_onnx(model, CLASSES, tmp_path / name / "classifier.onnx")
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        np.save(tmp_path / name / "squares.npy", squares.numpy())
        with torch.inference_mode():
            expected[name] = model(squares)
    logging.disable(logging.NOTSET)
    found = stock_process.run(Path(onnx_logits.__file__), tmp_path, torchvision=False)
    assert set(found) == set(expected)
    for name, logits in expected.items():
        assert logits.std(0).min() > 1e-3, name  # the photos differ, and so do the outputs
        assert found[name]["classes"] == list(CLASSES)
        assert found[name]["shape"][1:] == [3, *[expected_size(tmp_path / name)] * 2]
        for size, values in found[name]["logits"].items():
            error = (torch.tensor(values) - logits[: int(size)]).abs().max()
            assert error < LAYERS_FLOAT32, (name, size, float(error))
        proto = onnx.load(tmp_path / name / "classifier.onnx")
        onnx.checker.check_model(proto, full_check=True)
        assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}  # of ONNX alone
        assert [path.name for path in (tmp_path / name).glob("*onnx*")] == ["classifier.onnx"]
        assert str(Path(onnx_file.__file__).parent).encode() not in (tmp_path / name / "classifier.onnx").read_bytes()


def expected_size(folder: Path) -> int:
    return int(np.load(folder / "squares.npy").shape[2])


def test_without_the_packages_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    assert onnx_problem(model) is None
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    assert onnx_problem(model) == "onnx and onnxscript are not installed; try: pip install -e '.[onnx]'"
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: sys if name == "onnx" else None)
    assert onnx_problem(model) == "onnxscript is not installed; try: pip install -e '.[onnx]'"


def test_weights_that_one_file_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 4 * 5)
    assert onnx_problem(nn.Linear(4, 1)) is None
    assert "one file holds 2" in str(onnx_problem(nn.Linear(5, 1)))
