"""The thing we are here to learn: pixels in, features out, in a folder that stock libraries load.

ViTs are transformers' ViTModel (Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929), ResNets torchvision's
(He et al., CVPR 2016, https://arxiv.org/abs/1512.03385), with the small-image stem of SimCLR's CIFAR runs (appendix
B.9 of https://arxiv.org/abs/2002.05709) where images are small.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from transformers import ViTConfig, ViTModel
from transformers.models.vit import ViTImageProcessor
from transformers.utils.logging import disable_progress_bar

from components.config import Strict, parse
from components.models.heads import sincos
from components.models.norm import BatchNorm2d
from components.models.patches import grid

disable_progress_bar()  # one bar a saved file is noise

_from_pretrained: Any = ViTModel.from_pretrained  # typed as if it never gave loading info

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_IMAGE = 64  # up to this many pixels a ResNet keeps its resolution in the stem


class Pixels(Strict):
    """What a backbone is shown: squares of `image_size` pixels, normalized by `mean` and `std` (of values in 0 … 1)."""

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

    forward  uint8 (or float in 0 … 255) [B, 3, H, W] -> [B, D]     one vector an image, as `patches` and `pool` say
    whole    the same                                 -> [B, D]     one vector an image, pooled as `pool` says
    blocks   the same                                 -> [B, D] each, of every block or stage; the last one is forward's
    tokens   the same                                 -> [B, N, D]  one vector a place, class token excluded
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
        return self._averaged(self.whole(self._shown(pixels)), len(pixels))

    def blocks(self, pixels: Tensor) -> list[Tensor]:
        return [self._averaged(x, len(pixels)) for x in self._blocks(self._shown(pixels))]

    def _shown(self, pixels: Tensor) -> Tensor:
        return grid(pixels, self.patches).flatten(0, 1) if self.patches else pixels

    def _averaged(self, x: Tensor, pictures: int) -> Tensor:
        return x.unflatten(0, (pictures, -1)).mean(1) if self.patches else x

    def as_stock(self) -> Self:
        """From now on one vector a picture is what stock libraries compute: of the whole picture, the class token."""
        self.patches = 0
        return self

    @abstractmethod
    def whole(self, pixels: Tensor) -> Tensor: ...

    @abstractmethod
    def _blocks(self, pixels: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def tokens(self, pixels: Tensor) -> Tensor: ...

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json: transformers' own three names."""
        folder.mkdir(parents=True, exist_ok=True)
        size = {"height": self.config.image_size, "width": self.config.image_size}
        ViTImageProcessor(
            size=size, image_mean=list(self.config.mean), image_std=list(self.config.std), do_convert_rgb=True
        ).save_pretrained(folder)
        self._save(folder)

    @abstractmethod
    def _save(self, folder: Path) -> None: ...

    @abstractmethod
    def read_weights(self, folder: Path) -> None: ...


class ViT(Backbone):
    """transformers' ViTModel without its pooler; `AutoModel.from_pretrained(folder)` loads what it saves."""

    config: ViTBackbone

    def __init__(self, config: ViTBackbone) -> None:
        super().__init__(config)
        self.pool = config.pool
        shape = ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.trunk = ViTModel(shape, add_pooling_layer=False)
        self.dim = config.width
        # Xavier, as the original ViT and MAE (models_mae.py). transformers draws every weight with a deviation of 0.02,
        # which suits a width of 768: at 128 the same network stays at chance for hundreds of steps
        for weight in (p for p in self.trunk.parameters() if p.ndim in (2, 4)):
            nn.init.xavier_uniform_(weight.flatten(1))

    def embed(self, pixels: Tensor, hidden: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D]: class token and patches, with their positions, as the first block sees them.

        hidden: bool [B, N], patches in whose place `mask_token` [D] stands. Other sizes than image_size interpolate
        the positions.
        """
        embeddings = self.trunk.embeddings
        height, width = pixels.shape[-2:]
        x = embeddings.patch_embeddings(self.normalize(pixels))  # [B, N, D]
        if hidden is not None:
            assert mask_token is not None
            x = torch.where(hidden[:, :, None], mask_token.to(x.dtype), x)
        x = torch.cat([embeddings.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x + embeddings.interpolate_pos_encoding(x, height, width)

    def encode(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Any tokens that `embed` made, or a part of them, through all blocks and the norm: [B, M, D] -> [B, M, D].

        seen: bool [B, M], the tokens that any of them may look at; what comes out of the others means nothing.
        """
        return self.trunk.layernorm(self._through(x, self.trunk.layers, seen))

    def _through(self, x: Tensor, layers: nn.ModuleList, seen: Tensor | None = None) -> Tensor:
        attended = None if seen is None else seen[:, None, None, :]  # [B, heads, from, to]
        self.trunk.config._attn_implementation = attention(x.device, masked=seen is not None)
        for layer in layers:
            x = layer(x, attended)
        return x

    @torch.no_grad()
    def fix_positions(self) -> None:
        """Sines in place of learned positions, and none for the class token, frozen: MAE (appendix A.1), I-JEPA."""
        positions = self.trunk.embeddings.position_embeddings  # [1, 1 + N, D]
        positions[:, 0] = 0
        positions[:, 1:] = sincos(self.side, self.dim)
        positions.requires_grad_(False)  # noqa: FBT003

    @property
    def side(self) -> int:
        """Patches in a row of a whole image."""
        return self.config.image_size // self.config.patch_size

    def sequence(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D], class token first."""
        return self.encode(self.embed(pixels))

    def class_token(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], what `sequence` has first, to rounding.

        The last block is asked for this token alone: it reads the others' keys and values, but what becomes of them in
        it nobody would read. That is 10 / 12 of a block's work: 7 % of a ViT's of depth 12, 28 % of one's of depth 3.
        """
        last = self.trunk.layers[-1]
        x = self._through(self.embed(pixels), self.trunk.layers[:-1])
        told = last.layernorm_before(x)
        heads = (-1, last.attention.head_dim)
        query = last.attention.q_proj(told[:, 0]).unflatten(-1, heads)[:, :, None]  # [B, heads, 1, D / heads]
        key = last.attention.k_proj(told).unflatten(-1, heads).transpose(1, 2)
        value = last.attention.v_proj(told).unflatten(-1, heads).transpose(1, 2)
        weights = (last.attention.scaling * query @ key.transpose(2, 3)).softmax(-1)
        x = x[:, 0] + last.attention.o_proj((weights @ value).flatten(1))
        return self.trunk.layernorm(x + last.mlp(last.layernorm_after(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.pool == "class" else x[:, 1:].mean(1)

    def whole(self, pixels: Tensor) -> Tensor:
        return self.class_token(pixels) if self.pool == "class" else self._pooled(self.sequence(pixels))

    def _blocks(self, pixels: Tensor) -> list[Tensor]:
        x, found = self.embed(pixels), []
        self.trunk.config._attn_implementation = attention(x.device)
        for layer in self.trunk.layers:
            x = layer(x, None)
            found.append(self._pooled(self.trunk.layernorm(x)))
        return found

    def as_stock(self) -> Self:
        self.pool = "class"
        return super().as_stock()

    def tokens(self, pixels: Tensor) -> Tensor:
        return self.sequence(pixels)[:, 1:]

    def _save(self, folder: Path) -> None:
        self.trunk.config.pool, self.trunk.config.patches = self.pool, self.patches
        self.trunk.save_pretrained(folder)

    def read_weights(self, folder: Path) -> None:
        """transformers' own reader, for the names on disk are older than those in memory."""
        loaded, info = _from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"{folder} lacks weights: {', '.join(sorted(info['missing_keys']))}")
        self.trunk.load_state_dict(loaded.state_dict())


def attention(device: torch.device, *, masked: bool = False) -> str:
    """Which of transformers' implementations: on a CPU the fused one's backward in bf16 takes half of a ViT's step.

    masked: with a mask of bool, which the other one would add to the logits.
    """
    slow = device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return "eager" if slow and not masked else "sdpa"


class ResNet(Backbone):
    """torchvision's ResNet without its classifier; its state dict's keys are torchvision's."""

    config: ResNetBackbone

    def __init__(self, config: ResNetBackbone) -> None:
        super().__init__(config)
        self.pool = "mean"
        self.trunk = {"resnet18": resnet18, "resnet50": resnet50}[config.kind](weights=None, norm_layer=BatchNorm2d)
        self.dim = self.trunk.fc.in_features
        self.trunk.fc = nn.Identity()
        if config.image_size <= SMALL_IMAGE:
            self.trunk.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.trunk.maxpool = nn.Identity()

    def whole(self, pixels: Tensor) -> Tensor:
        return self.trunk(self.normalize(pixels))

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        trunk, found = self.trunk, []
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(self.normalize(pixels)))))
        for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
            x = stage(x)  # [B, D, h, w]
            found.append(x)
        return found

    def _blocks(self, pixels: Tensor) -> list[Tensor]:
        return [self.trunk.avgpool(x).flatten(1) for x in self._stages(pixels)]

    def tokens(self, pixels: Tensor) -> Tensor:
        return self._stages(pixels)[-1].flatten(2).transpose(1, 2)

    def _save(self, folder: Path) -> None:
        said = {"model_type": self.config.kind, **self.config.model_dump(mode="json"), "patches": self.patches}
        (folder / "config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.trunk.state_dict().items()}, folder / "model.safetensors")

    def read_weights(self, folder: Path) -> None:
        self.trunk.load_state_dict(load_file(folder / "model.safetensors"))


def patches_of(backbone: Backbone, method: str) -> ViT:
    """The backbone as the ViT that `method` needs. Raises ValueError if it is none."""
    if not isinstance(backbone, ViT):
        raise ValueError(f"{method} needs patches, and {backbone.config.kind} has none; try backbone.kind: vit")
    return backbone


def build(config: ViTBackbone | ResNetBackbone) -> Backbone:
    """A new backbone with random weights."""
    return ViT(config) if isinstance(config, ViTBackbone) else ResNet(config)


def load(folder: Path) -> Backbone:
    """A backbone that `save` wrote. Raises ValueError if the folder holds none."""
    files = [folder / name for name in ("config.json", "model.safetensors", "preprocessor_config.json")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{folder} holds no backbone: {', '.join(missing)} missing")
    said, pixels = (json.loads(file.read_text(encoding="utf-8")) for file in (files[0], files[2]))
    kind = said["model_type"]
    shown = {"mean": tuple(pixels["image_mean"]), "std": tuple(pixels["image_std"]), "patches": said.get("patches", 0)}
    if kind == "vit":
        values = {
            "image_size": said["image_size"],
            "patch_size": said["patch_size"],
            "width": said["hidden_size"],
            "depth": said["num_hidden_layers"],
            "heads": said["num_attention_heads"],
            "pool": said.get("pool", "class"),
            **shown,
        }
        backbone: Backbone = ViT(parse(ViTBackbone, values, str(files[0])))
    elif kind in ("resnet18", "resnet50"):
        values = {"kind": kind, "image_size": said["image_size"], **shown}
        backbone = ResNet(parse(ResNetBackbone, values, str(files[0])))
    else:
        raise ValueError(f"{files[0]} says model_type {kind!r}; known: vit, resnet18, resnet50")
    backbone.read_weights(folder)
    return backbone
