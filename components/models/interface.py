"""The interface of a backbone: its configuration, its inputs and outputs, and the folder it is saved in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers.models.vit import ViTImageProcessor

from components.config import Strict
from components.data.photos import Square
from components.machine import make_readable
from components.models.origin import TEACHER, Origin
from components.models.patches import grid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Pixels(Strict):
    """The input of a backbone: squares of `image_size` pixels, normalized by `mean` and `std` (of values in 0 … 1)."""

    image_size: int = Field(224, ge=8)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    square: Square = "squash"  # what is done to photos that are not square
    patches: int = Field(0, ge=0)  # side in pixels of 3 × 3 patches whose features are averaged; 0: the whole picture

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if self.patches > self.image_size:
            raise ValueError(f"patches {self.patches} is larger than image_size {self.image_size}")
        return self


def check_divides(image_size: int, patch_size: int) -> None:
    """Raises ValueError if an image does not consist of whole patches."""
    if image_size % patch_size:
        raise ValueError(
            f"image_size {image_size} is not a multiple of patch_size {patch_size}; "
            f"try image_size {image_size // patch_size * patch_size or patch_size}"
        )


class ViTBackbone(Pixels):
    """Defaults: ViT-S/16."""

    kind: Literal["vit"] = "vit"
    patch_size: int = Field(16, ge=1)
    width: int = Field(384, ge=8)
    depth: int = Field(12, ge=1)
    heads: int = Field(6, ge=1)
    layer_norm_eps: float = Field(1e-6, gt=0)  # as timm, DINO and MAE; transformers' own default is 1e-12
    pool: Literal["class", "mean"] = "class"  # the class token, or, where a method trains only the others, their mean

    @model_validator(mode="after")
    def _check_patch_size(self) -> ViTBackbone:
        check_divides(self.image_size, self.patch_size)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ResNetBackbone(Pixels):
    kind: Literal["resnet18", "resnet50"]


class PublishedBackbone(Pixels):
    """A backbone with published weights; all settings but the first three are its checkpoint's."""

    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["published"]
    source: str = Field(alias="from")  # a Hugging Face id, a folder, or efficientnet-lite0
    revision: str | None = None
    patch_size: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check_patch_size(self) -> Self:
        check_divides(self.image_size, self.patch_size)
        return self


AnyBackbone = ViTBackbone | ResNetBackbone | PublishedBackbone
BackboneConfig = Annotated[AnyBackbone, Field(discriminator="kind")]


def transformer_layers(model: nn.Module, blocks: str, depth: int) -> dict[str, int]:
    """Returns `Backbone.layers` of a transformer; blocks: the name of their list. The last norm is a layer too."""

    def layer(name: str) -> int:
        if name.startswith(f"{blocks}."):
            return 1 + int(name.removeprefix(f"{blocks}.").partition(".")[0])
        return 0 if "embeddings" in name or "pre_layrnorm" in name else depth + 1

    return {name: layer(name) for name, _ in model.named_parameters()}


class Backbone(nn.Module, ABC):
    """Pixels in, features out; the pixel statistics travel in its folder.

    forward  uint8 (or float in 0 … 255) [B, 3, H, W] -> [B, D]     one vector per image, by `patches` and `pool`
    whole    the same                                 -> [B, D]     one vector per image, pooled by `pool`
    blocks   the same                                 -> [B, D] each, of every block or stage; the last one is forward's
    tokens   the same                                 -> [B, N, D]  one vector per position, without class token
    whole_and_tokens  both of them, from one pass
    """

    pool: str
    origin: Origin | None  # of published weights
    teacher: Origin | None  # of the published weights that it was distilled from
    patches: int  # where a method trains only those: side of the 3 × 3 patches whose features are averaged, or 0
    fixed_size = False  # True: takes squares of its image_size only
    fixed_statistics = False  # True: batch norm normalizes as in eval mode during training too

    config: AnyBackbone
    dim: int
    trunk: Any
    mean: Tensor
    std: Tensor

    def __init__(self, config: AnyBackbone) -> None:
        super().__init__()
        self.config, self.origin, self.teacher = config, None, None
        self.patches = config.patches
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1) * 255, persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        return self._average_patches(self.whole(self._inputs(pixels)), len(pixels))

    def blocks(self, pixels: Tensor) -> list[Tensor]:
        return [self._average_patches(x, len(pixels)) for x in self._blocks(self._inputs(pixels))]

    def _inputs(self, pixels: Tensor) -> Tensor:
        return grid(pixels, self.patches).flatten(0, 1) if self.patches else pixels

    def _average_patches(self, x: Tensor, images: int) -> Tensor:
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
    def whole_and_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...

    def tokens(self, pixels: Tensor) -> Tensor:
        return self.whole_and_tokens(pixels)[1]

    def save(self, folder: Path) -> None:
        """Writes config.json, model.safetensors and preprocessor_config.json: transformers' own three names."""
        folder.mkdir(parents=True, exist_ok=True)
        side = {"height": self.config.image_size, "width": self.config.image_size}
        crop = {"size": {"shortest_edge": self.config.image_size}, "do_center_crop": True, "crop_size": side}
        ViTImageProcessor(
            **(crop if self.config.square == "crop" else {"size": side}),
            image_mean=list(self.config.mean),
            image_std=list(self.config.std),
            do_convert_rgb=True,
        ).save_pretrained(folder)
        self._save(folder)
        if self.origin:
            self.origin.write(folder)
        if self.teacher:
            self.teacher.write(folder, TEACHER)
        make_readable(folder)

    @property
    def prefix(self) -> int:
        """How many tokens come before those of the patches, the class token first; 0 for a CNN."""
        return 0

    @property
    def has_batch_norm(self) -> bool:
        """True if features in train mode depend on the other images of the batch."""
        return not self.fixed_statistics and bool(self._batch_norms())

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's signature)
        super().train(mode)
        if self.fixed_statistics:
            for layer in self._batch_norms():
                layer.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        return [layer for layer in self.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]

    @abstractmethod
    def layers(self) -> dict[str, int]:
        """Returns the layer of each parameter by its name: 0 for the patch embedding or stem, then the blocks."""

    @abstractmethod
    def untrained(self) -> Backbone:
        """Returns a backbone of the same shape with random weights, from torch's generator."""

    @abstractmethod
    def _save(self, folder: Path) -> None: ...
