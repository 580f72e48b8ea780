"""Builds new backbones and loads saved ones, from folders that stock libraries read too."""

from __future__ import annotations

import json
from pathlib import Path

from components.config import parse
from components.models.interface import Backbone, BackboneConfig, ResNetBackbone, ViTBackbone
from components.models.patches import SIDE
from components.models.resnet import ResNet
from components.models.vit import ViT

__all__ = [
    "Backbone",
    "BackboneConfig",
    "ResNet",
    "ResNetBackbone",
    "ViT",
    "ViTBackbone",
    "build",
    "load",
    "patches_of",
    "require_fit",
]


def patches_of(backbone: Backbone, method: str) -> ViT:
    """Returns the backbone as the ViT that `method` needs. Raises ValueError if it is none."""
    if not isinstance(backbone, ViT):
        raise ValueError(f"{method} needs patches, and {backbone.config.kind} has none; try backbone.kind: vit")
    return backbone


def require_fit(backbone: Backbone, name: str, size: int) -> None:
    """Raises ValueError unless the backbone can be trained and evaluated on squares of `size` pixels."""
    step, limit = int(getattr(backbone.config, "patch_size", 1)), backbone.config.image_size
    if size % step or size > limit:
        raise ValueError(
            f"{name} is {size} pixels; allowed: multiples of the backbone's patch_size {step} up to its image_size "
            f"{limit}; try {max(step, limit // SIDE // step * step)}"
        )


def build(config: ViTBackbone | ResNetBackbone) -> Backbone:
    """Returns a new backbone with random weights."""
    return ViT(config) if isinstance(config, ViTBackbone) else ResNet(config)


def load(folder: Path) -> Backbone:
    """Returns a backbone that `save` wrote. Raises ValueError if the folder holds none."""
    files = [folder / name for name in ("config.json", "model.safetensors", "preprocessor_config.json")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{folder} holds no backbone: {', '.join(missing)} missing")
    saved, pixels = (json.loads(file.read_text(encoding="utf-8")) for file in (files[0], files[2]))
    kind = saved.get("model_type")
    common = {
        "mean": tuple(pixels["image_mean"]),
        "std": tuple(pixels["image_std"]),
        "patches": saved.get("patches", 0),
    }
    if kind == "vit":
        values = {
            "image_size": saved["image_size"],
            "patch_size": saved["patch_size"],
            "width": saved["hidden_size"],
            "depth": saved["num_hidden_layers"],
            "heads": saved["num_attention_heads"],
            "layer_norm_eps": saved["layer_norm_eps"],
            "pool": saved.get("pool", "class"),
            **common,
        }
        backbone: Backbone = ViT(parse(ViTBackbone, values, str(files[0])))
    elif kind in ("resnet18", "resnet50"):
        values = {"kind": kind, "image_size": saved["image_size"], **common}
        backbone = ResNet(parse(ResNetBackbone, values, str(files[0])))
    else:
        raise ValueError(f"{files[0]} says model_type {kind!r}; allowed: vit, resnet18, resnet50")
    backbone.read_weights(folder)
    return backbone
