"""Every kind of tower that connect takes, as a tiny backbone with random weights, and how many tokens a photo is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TimmWrapperConfig, TimmWrapperModel

from components.connector.trained import Trained
from components.models import published
from components.models.backbone import Backbone, PublishedBackbone, ResNetBackbone, build
from tests.connector import tiny
from tests.families import PIXELS, checkpoint

MODES: tuple[Trained, ...] = ("projector", "lora", "all")


@dataclass(frozen=True)
class Tower:
    make: Callable[[Path], Any]  # writes what pretrain writes: the folder's subfolder "backbone"
    tokens: int  # counted by hand: patches or places, and tokens before them
    tied: bool  # whether the language model's head has the weights of its embedding
    modes: tuple[Trained, ...] = MODES
    image_size: int | None = None  # of connect; None: its choice, for the small CNNs here twice or four times their own


def keep(folder: Path) -> None:
    """Saves the checkpoint in folder/from as the method `published` keeps it."""
    values = published.resolve({"kind": "published", "from": str(folder / "from")})
    build(PublishedBackbone(**values)).save(folder / "backbone")


def family(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        checkpoint(name, folder / "from")
        keep(folder)

    return make


def timm(architecture: str, size: int = 64) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        torch.manual_seed(0)
        values: dict[str, Any] = {**PIXELS, "input_size": (3, size, size)}
        model = TimmWrapperModel(TimmWrapperConfig(architecture=architecture, pretrained_cfg=values))
        set_statistics(model, size)
        model.save_pretrained(folder / "from")
        keep(folder)

    return make


def resnet(kind: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        torch.manual_seed(0)
        backbone = build(ResNetBackbone(kind=kind, image_size=72))
        set_statistics(backbone, 72)
        backbone.save(folder / "backbone")

    return make


@torch.no_grad()
def set_statistics(model: torch.nn.Module, size: int) -> None:
    """Gives batch norm the statistics of smooth pictures: with its initial ones, features would vanish or explode."""
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None  # the mean of all batches, here one
    pictures = torch.nn.functional.interpolate(torch.rand(8, 3, 5, 4), size=(size, size), mode="bicubic")
    model.train()((255 * pictures.clamp(0, 1)).byte() if isinstance(model, Backbone) else 4 * pictures - 2)
    model.eval()


# Every class of tower has a row with all modes. The others are saved as such a tower, or are CNNs beside EfficientNet,
# all of which transformers holds in one class.
TOWERS: dict[str, Tower] = {
    "selfsight's vit": Tower(tiny.backbone, 1 + 4, tied=True),
    "vit": Tower(family("vit"), 1 + 16, tied=False),
    "vit_mae": Tower(family("vit_mae"), 1 + 16, tied=True, modes=("lora",)),
    "deit": Tower(family("deit"), 2 + 16, tied=True),
    "dinov2": Tower(family("dinov2"), 1 + 4, tied=False),
    "dinov2_with_registers": Tower(family("dinov2_with_registers"), 1 + 4 + 4, tied=True),
    "dinov3_vit": Tower(family("dinov3_vit"), 1 + 4 + 16, tied=False),
    "siglip": Tower(family("siglip"), 16, tied=True, modes=("lora",)),
    "siglip_vision_model": Tower(family("siglip_vision_model"), 16, tied=True),
    "clip": Tower(family("clip"), 1 + 16, tied=True, modes=("lora",)),
    "clip_vision_model": Tower(family("clip_vision_model"), 1 + 16, tied=False),
    "ijepa": Tower(family("ijepa"), 16, tied=True),
    # places are rounded up: ⌈70 / 32⌉ = ⌈72 / 32⌉ = 3
    "timm's EfficientNet-Lite0": Tower(timm("tf_efficientnet_lite0", 70), 3 * 3, tied=True, image_size=70),
    "timm's ResNet-10": Tower(family("timm_wrapper"), 4 * 4, tied=False, modes=("lora",)),
    # whose features are widened from 288 to 1,024 after pooling
    "timm's MobileNetV3": Tower(timm("mobilenetv3_small_050"), 4 * 4, tied=True, modes=("projector",)),
    "timm's ConvNeXt": Tower(timm("test_convnext"), 4 * 4, tied=False, modes=("all",)),
    "resnet18": Tower(resnet("resnet18"), 3 * 3, tied=False, modes=("projector",), image_size=72),
    "resnet50": Tower(resnet("resnet50"), 3 * 3, tied=True, modes=("lora",), image_size=72),
}
