"""Opens a classifier that `classifier.save` wrote, in each of its forms, as a module from pixels to logits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from components.adapters.classifier import MULTI_LABEL
from components.adapters.heads import Attention
from components.adapters.pixel_classifier import PixelClassifier
from components.config import parse
from components.data.photos import Square
from components.models import pretrained
from components.models.backbone import ResNet, ResNetBackbone, load
from components.source_files import digest

KEY = "adapter.json"
FEW = 3  # classes that are named


@dataclass(frozen=True)
class SavedClassifier:
    """model: uint8 [B, 3, S, S] -> logits [B, C]; size: S; square: how a photo becomes a square.

    multi_label: photos have several labels, so that the probability of a class does not depend on those of others.
    """

    model: nn.Module
    classes: tuple[str, ...]
    size: int
    square: Square
    multi_label: bool

    @torch.no_grad()
    def probabilities(self, squares: Tensor) -> Tensor:
        """Returns the probability of each class: uint8 [B, 3, S, S] -> float32 [B, C]."""
        logits = self.model(squares)
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def likely(self, squares: Tensor, k: int | None = None) -> list[list[tuple[str, float]]]:
        """Returns for each photo the most probable classes and their probabilities, best first.

        k: how many. None: FEW; where photos have several labels, all with a probability above 0.5, at least one.
        """
        probabilities, use_threshold = self.probabilities(squares), self.multi_label and k is None
        best = probabilities.topk(len(self.classes) if use_threshold else min(k or FEW, len(self.classes)))
        likely = [
            [(self.classes[index], value) for index, value in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return [[guess for guess in row if guess[1] > 0.5] or row[:1] for row in likely] if use_threshold else likely


class _Stock(nn.Module):
    """A class of transformers, with the normalization of its processor before it."""

    def __init__(self, model: Any, pixels: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(pixels[f"image_{name}"]).view(3, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean) / self.std).logits


def load_classifier(folder: Path) -> SavedClassifier:
    """Returns the classifier in the folder. Raises ValueError if there is none."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no classifier: config.json is missing; this makes one: dvc repro adapt")
    config = json.loads(file.read_text(encoding="utf-8"))
    if "head" in config:
        return _load_parts(folder, config)
    pixels = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    size = int((pixels.get("crop_size") or pixels["size"])["height"])
    square: Square = "crop" if pixels.get("do_center_crop") else "squash"
    if config.get("model_type") in pretrained.RESNETS:
        return _torchvision(folder, config)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    classes = tuple(model.config.id2label[index] for index in range(len(model.config.id2label)))
    return SavedClassifier(_Stock(model, pixels), classes, size, square, _several(config))


def _load_parts(folder: Path, config: dict[str, Any]) -> SavedClassifier:
    backbone = load(folder / "backbone").as_stock()
    weights, classes = load_file(folder / "head.safetensors"), tuple(config["classes"])
    kind = config["head"].partition(":")[0].partition(",")[0]
    head: nn.Module
    if kind == "attention":
        head = Attention(weights["norm.weight"].numel(), len(classes), config["heads"])
    elif kind == "mlp":
        hidden, dim = weights["0.weight"].shape
        head = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, len(classes)))
    else:
        head = nn.Linear(*weights["weight"].shape[::-1])
    head.load_state_dict(weights)
    model = PixelClassifier(backbone, head, "tokens" if kind == "attention" else "feature").eval()
    return SavedClassifier(model, classes, backbone.config.image_size, backbone.config.square, _several(config))


def _torchvision(folder: Path, config: dict[str, Any]) -> SavedClassifier:
    values = {name: config[name] for name in ResNetBackbone.model_fields}
    backbone = ResNet(parse(ResNetBackbone, values, str(folder / "config.json")))
    weights = load_file(folder / "model.safetensors")
    head = nn.Linear(backbone.dim, len(config["classes"]))
    head.load_state_dict({name: weights.pop(f"fc.{name}") for name in ("weight", "bias")})
    backbone.trunk.load_state_dict(weights)
    model = PixelClassifier(backbone, head, "feature").eval()
    classes = tuple(config["classes"])
    return SavedClassifier(model, classes, backbone.config.image_size, backbone.config.square, _several(config))


def _several(config: dict[str, Any]) -> bool:
    return config.get("problem_type") == MULTI_LABEL


def write_key(folder: Path, backbone: Path) -> None:
    """Writes adapter.json: the digests of the backbone that was trained on, and of the files in folder/model."""
    model = folder / "model"
    files = sorted(file for file in model.rglob("*") if file.is_file())
    key = {
        "backbone": {name: digest(backbone / name) for name in ("config.json", "model.safetensors")},
        "model": {file.relative_to(model).as_posix(): digest(file) for file in files},
    }
    (folder / KEY).write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")


def check_key(folder: Path, backbone: Path | None) -> None:
    """Raises ValueError if adapter.json is missing, or if it names another backbone or other files in model/.

    backbone: None if it is not known, as for a classifier that was copied; model/ has all weights.
    """
    file = folder / KEY
    if not file.is_file():
        raise ValueError(f"{folder} holds no classifier: {KEY} is missing; this makes one: dvc repro adapt")
    key = json.loads(file.read_text(encoding="utf-8"))
    if name := _other(folder / "model", key["model"]):
        raise ValueError(f"{folder / 'model' / name} is not the file that adapt wrote; run: dvc repro --force adapt")
    if backbone and _other(backbone, key["backbone"]):
        raise ValueError(f"{folder} is of another backbone than the one in {backbone}; run: dvc repro adapt")


def _other(folder: Path, digests: dict[str, str]) -> str | None:
    """Returns the first file that is missing or has another digest, None if all are as expected."""
    for name, expected in digests.items():
        if not (folder / name).is_file() or digest(folder / name) != expected:
            return name
    return None
