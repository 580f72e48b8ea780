"""The interface of a backbone: its configuration, its inputs and outputs, and the folder it is saved in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers.models.vit import ViTImageProcessor

from components.config import Strict
from components.machine import make_readable
from components.models.patches import grid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Pixels(Strict):
    """The input of a backbone: squares of `image_size` pixels, normalized by `mean` and `std` (of values in 0 … 1)."""

    image_size: int = Field(224, ge=8)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    patches: int = Field(0, ge=0)  # side in pixels of 3 × 3 patches whose features are averaged; 0: the whole picture

    @model_validator(mode="after")
    def _holds(self) -> Self:
        if self.patches > self.image_size:
            raise ValueError(f"patches {self.patches} is larger than image_size {self.image_size}")
        return self


class ViTBackbone(Pixels):
    """Defaults: ViT-S/16."""

    kind: Literal["vit"] = "vit"
    patch_size: int = Field(16, ge=1)
    width: int = Field(384, ge=8)
    depth: int = Field(12, ge=1)
    heads: int = Field(6, ge=1)
    layer_norm_eps: float = Field(1e-6, gt=0)  # as timm, DINO and MAE; transformers' own default is 1e-12
    pool: Literal["class", "mean"] = "class"  # token, or of all others, where a method trains only those

    @model_validator(mode="after")
    def _divides(self) -> ViTBackbone:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"try image_size {self.image_size // self.patch_size * self.patch_size or self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ResNetBackbone(Pixels):
    kind: Literal["resnet18", "resnet50"]


BackboneConfig = Annotated[ViTBackbone | ResNetBackbone, Field(discriminator="kind")]


class Backbone(nn.Module, ABC):
    """Pixels in, features out; the pixel statistics travel in its folder.

    forward  uint8 (or float in 0 … 255) [B, 3, H, W] -> [B, D]     one vector per image, by `patches` and `pool`
    whole    the same                                 -> [B, D]     one vector per image, pooled by `pool`
    blocks   the same                                 -> [B, D] each, of every block or stage; the last one is forward's
    tokens   the same                                 -> [B, N, D]  one vector per position, without class token
    """

    pool: str
    patches: int  # where a method trains only those: side of the 3 × 3 patches whose features are averaged, or 0

    config: ViTBackbone | ResNetBackbone
    dim: int
    trunk: Any
    mean: Tensor
    std: Tensor

    def __init__(self, config: ViTBackbone | ResNetBackbone) -> None:
        super().__init__()
        self.config = config
        self.patches = config.patches
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1) * 255, persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        return self._averaged(self.whole(self._inputs(pixels)), len(pixels))

    def blocks(self, pixels: Tensor) -> list[Tensor]:
        return [self._averaged(x, len(pixels)) for x in self._blocks(self._inputs(pixels))]

    def _inputs(self, pixels: Tensor) -> Tensor:
        return grid(pixels, self.patches).flatten(0, 1) if self.patches else pixels

    def _averaged(self, x: Tensor, images: int) -> Tensor:
        return x.unflatten(0, (images, -1)).mean(1) if self.patches else x

    def as_stock(self) -> Self:
        """Sets the pooling to that of stock libraries: the class token of the whole image. Returns self."""
        self.patches = 0
        return self

    @abstractmethod
    def whole(self, pixels: Tensor) -> Tensor: ...

    @abstractmethod
    def _blocks(self, pixels: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def tokens(self, pixels: Tensor) -> Tensor: ...

    def save(self, folder: Path) -> None:
        """Writes config.json, model.safetensors and preprocessor_config.json: transformers' own three names."""
        folder.mkdir(parents=True, exist_ok=True)
        size = {"height": self.config.image_size, "width": self.config.image_size}
        ViTImageProcessor(
            size=size, image_mean=list(self.config.mean), image_std=list(self.config.std), do_convert_rgb=True
        ).save_pretrained(folder)
        self._save(folder)
        make_readable(folder)

    @abstractmethod
    def _save(self, folder: Path) -> None: ...

    @abstractmethod
    def read_weights(self, folder: Path) -> None: ...
