"""Classifiers and pixels are the same in a new process without this project as they were in training."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from components.adapters.classifier import save
from components.data.photos import Photos
from components.models.backbone import Backbone, ResNetBackbone, ViTBackbone, build
from components.stages import prepare
from tests import stock_process
from tests.adapters import stock_images
from tests.tolerances import LAYERS_FLOAT32

ROOT = Path(__file__).parents[2]
BACKBONES = {
    "stock/vit": ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2),
    "stock/resnet18": ResNetBackbone(kind="resnet18", image_size=72),
    "stock/resnet50": ResNetBackbone(kind="resnet50", image_size=72),
    "torchvision/resnet18": ResNetBackbone(kind="resnet18", image_size=32),
    "torchvision/features": ResNetBackbone(kind="resnet18", image_size=80),
}
CLASSES = ("one", "two", "three")


def draw_photos(folder: Path) -> None:
    """One file for each way in which pixels can be stored, 40 × 30, without an axis of symmetry."""
    folder.mkdir()
    y, x = np.mgrid[0:30, 0:40]
    gray = 255 * (0.6 * x / 39 + 0.4 * y / 29)
    colors = np.stack([gray, gray[:, ::-1], gray[::-1]], 2).astype(np.uint8)
    rgb, alpha = Image.fromarray(colors), Image.fromarray(np.where(x < 20, 30, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "exif.jpg", exif=exif, quality=95)
    rgb.save(folder / "rgb.png")
    rgb.convert("L").save(folder / "l.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.merge("RGBA", (*rgb.split(), alpha)).save(folder / "rgba.png")
    Image.merge("LA", (rgb.convert("L"), alpha)).save(folder / "la.png")
    rgb.quantize(16).save(folder / "p.png", transparency=3)
    Image.fromarray((257 * gray).astype(np.uint16)).save(folder / "i16.png")


def train_statistics(backbone: Backbone) -> None:
    """Gives batch norm statistics of its own, so that a layer in the wrong place shows."""
    backbone.train()
    for layer in backbone.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0  # else those of the start outweigh the images', and outputs hardly differ
    with torch.no_grad():
        for step in range(3):
            size = backbone.config.image_size
            pixels = torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(step))
            backbone(pixels.to(torch.uint8))
    backbone.eval()


def colored_squares(count: int, size: int) -> Tensor:
    """Returns squares of one color each, with noise, which alone looks alike to a CNN: uint8 [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(1)
    colors = 200 * torch.rand(count, 3, 1, 1, generator=generator)
    return (colors + 55 * torch.rand(count, 3, size, size, generator=generator)).to(torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, prepared as for training, a backbone, and classifiers."""
    folder = tmp_path_factory.mktemp("stock")
    draw_photos(folder / "photos")
    shutil.copy(ROOT / "docs" / "loading.md", folder)
    settings = {"data": {"source": str(folder / "photos"), "size": 32}, "prepare": {}}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["prepare", "--out", "data", "--downloads", "downloads"])
        prepare.main()
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    """Logits of each saved classifier, or features of a backbone, for all photos."""
    photos, outputs = Photos(folder / "data"), {}
    build(ViTBackbone(image_size=24, patch_size=8, width=16, depth=1, heads=2)).save(folder / "backbone")
    for name, config in BACKBONES.items():
        torch.manual_seed(0)
        backbone = build(config)
        train_statistics(backbone)
        head = nn.Linear(backbone.dim, len(CLASSES)) if name != "torchvision/features" else None
        squares = photos.squares(np.arange(len(photos)), config.image_size)
        with torch.inference_mode():
            features = backbone(squares)
            outputs[name] = head(features) if head else features
        if head:
            save(folder / name, backbone, head, CLASSES)
        else:
            backbone.save(folder / name)
        np.save(folder / name / "squares.npy", squares.permute(0, 2, 3, 1).numpy())
    return outputs


@pytest.fixture(scope="module")
def stock(folder: Path, expected: dict[str, Tensor]) -> Any:
    """Returns what a new process computes: outputs and labels by classifier. It also writes pixels.npz."""
    return stock_process.run(Path(stock_images.__file__), folder)


def test_classifiers_give_the_same_logits(expected: dict[str, Tensor], stock: Any) -> None:
    outputs, labels = stock
    assert set(outputs) == set(BACKBONES)
    for name, values in expected.items():
        assert values.std(0).min() > 1e-3  # the photos differ, and so do the outputs
        torch.testing.assert_close(
            torch.tensor(outputs[name]), values, atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32, msg=name
        )
    assert set(labels) == {name for name in BACKBONES if name.startswith("stock/")}
    for name, words in labels.items():
        assert words == [CLASSES[place] for place in expected[name].argmax(1).tolist()]


def test_photos_opened_as_documented_have_the_pixels_of_training(folder: Path, stock: Any) -> None:
    """The pixels differ by no more than two ways of resizing do. Opened without care, most files would differ."""
    photos, size = Photos(folder / "data"), 24
    names = photos.manifest["path"].to_list()
    assert len(names) == len(list((folder / "photos").iterdir()))
    with np.load(folder / "pixels.npz") as opened:
        for row, name in enumerate(names):
            trained = photos.squares(np.array([row]), size)[0].numpy().astype(np.float64)
            assert np.abs(opened[name] - trained).max() < 4, name
            careless = Image.open(folder / "photos" / name).convert("RGB").resize((size, size))
            difference = np.abs(np.asarray(careless).transpose(2, 0, 1) - trained).mean()
            assert (difference > 8) == (name in ("exif.jpg", "i16.png", "la.png", "p.png", "rgba.png")), (
                name,
                difference,
            )


def test_weights_can_be_read_by_whoever_can_read_the_config(folder: Path, expected: dict[str, Tensor]) -> None:
    """safetensors creates files that only their owner can read."""
    for name in (*BACKBONES, "backbone"):
        modes = {file.name: file.stat().st_mode for file in (folder / name).iterdir()}
        assert modes["model.safetensors"] == modes["config.json"]
