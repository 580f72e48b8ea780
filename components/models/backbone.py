"""Builds new backbones and loads saved ones, from folders that stock libraries read too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.config import parse
from components.models import pretrained, published
from components.models.families import FAMILIES
from components.models.interface import (
    AnyBackbone,
    Backbone,
    BackboneConfig,
    PublishedBackbone,
    ResNetBackbone,
    ViTBackbone,
)
from components.models.origin import TEACHER, Origin
from components.models.patches import SIDE
from components.models.published import Published, Timm
from components.models.resnet import SMALL_IMAGE, ResNet
from components.models.vit import ViT

__all__ = [
    "AnyBackbone",
    "Backbone",
    "BackboneConfig",
    "Published",
    "PublishedBackbone",
    "ResNet",
    "ResNetBackbone",
    "Timm",
    "ViT",
    "ViTBackbone",
    "build",
    "load",
    "patches_of",
    "require_fit",
    "require_size",
]


def patches_of(backbone: Backbone, method: str) -> ViT:
    """Returns the backbone as the ViT that `method` needs. Raises ValueError if it is none."""
    if isinstance(backbone, Published | Timm):
        raise ValueError(
            f"{method} goes on from ViT and MAE checkpoints of the usual shape only, and this one is a "
            f"{backbone.origin.model_type}; try another method, such as simclr, byol or diet"
        )
    if not isinstance(backbone, ViT):
        raise ValueError(f"{method} needs patches, and {backbone.config.kind} has none; try backbone.kind: vit")
    return backbone


def require_size(backbone: Backbone, name: str, size: int) -> None:
    """Raises ValueError if the backbone takes squares of its image_size only, and `size` is another."""
    if backbone.fixed_size and size != backbone.config.image_size:
        raise ValueError(
            f"{name} is {size} pixels, and this model of timm takes squares of {backbone.config.image_size} pixels "
            "only; try a method without views of other sizes, such as simclr, byol or diet"
        )


def require_fit(backbone: Backbone, name: str, size: int) -> None:
    """Raises ValueError unless the backbone can be trained and evaluated on squares of `size` pixels."""
    step, limit = int(getattr(backbone.config, "patch_size", 1)), backbone.config.image_size
    require_size(backbone, name, size)
    if size % step or size > limit:
        raise ValueError(
            f"{name} is {size} pixels; allowed: multiples of the backbone's patch_size {step} up to its image_size "
            f"{limit}; try {max(step, limit // SIDE // step * step)}"
        )


def build(config: AnyBackbone) -> Backbone:
    """Returns a new backbone: with random weights, or with published ones. Raises ValueError if there are none."""
    if isinstance(config, ViTBackbone):
        return ViT(config)
    if isinstance(config, ResNetBackbone):
        return ResNet(config)
    folder = Path(config.source).expanduser()
    if pretrained.saved_resnet(folder):
        backbone = _for_size(load(folder), config)
        backbone.origin = Origin.of_folder(config.source, backbone.config.kind)
    else:
        backbone = published.build(config)
    backbone.teacher = Origin.read(folder, TEACHER)
    return backbone


def _for_size(backbone: Backbone, config: PublishedBackbone) -> Backbone:
    """Returns a ResNet for another image size. Raises ValueError where its first layer would have to be another."""
    shape = backbone.config
    if (shape.image_size <= SMALL_IMAGE) != (config.image_size <= SMALL_IMAGE):
        raise ValueError(
            f"image_size {config.image_size}: {config.source} was trained at {shape.image_size} pixels, and a ResNet "
            f"for up to {SMALL_IMAGE} pixels has another first layer than one for more"
        )
    backbone.config = shape.model_copy(update={"image_size": config.image_size})
    return backbone


def load(folder: Path) -> Backbone:
    """Returns a backbone that `save` wrote. Raises ValueError if the folder holds none."""
    files = [folder / name for name in ("config.json", "model.safetensors", "preprocessor_config.json")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{folder} holds no backbone: {', '.join(missing)} missing")
    config, pixels = (json.loads(file.read_text(encoding="utf-8")) for file in (files[0], files[2]))
    common: dict[str, Any]
    kind, common = config.get("model_type"), {"mean": tuple(pixels["image_mean"]), "std": tuple(pixels["image_std"])}
    common["square"] = "crop" if pixels.get("do_center_crop") else "squash"
    if kind in pretrained.RESNETS:
        values = {"kind": kind, "image_size": config["image_size"], "patches": config.get("patches", 0), **common}
        backbone: Any = ResNet(parse(ResNetBackbone, values, str(files[0])))
        backbone.read_weights(folder)
    elif kind in {*FAMILIES, pretrained.TIMM}:
        values = {
            "kind": "published",
            "from": str(folder),
            "image_size": (pixels.get("crop_size") or pixels["size"])["height"],
            **common,
        }
        values["patch_size"] = config.get("patch_size", 1)
        backbone = published.build(parse(PublishedBackbone, values, str(files[0])))
    else:
        allowed = ", ".join([*pretrained.RESNETS, *FAMILIES, pretrained.TIMM])
        raise ValueError(f"{files[0]} says model_type {kind!r}; allowed: {allowed}")
    backbone.origin, backbone.teacher = Origin.read(folder), Origin.read(folder, TEACHER)
    return backbone
