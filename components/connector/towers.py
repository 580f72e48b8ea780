"""Vision towers: saved backbones as transformers' classes, and what a language model gets of them.

A transformer gives a sequence of tokens [B, N, D], a CNN a map [B, D, h, w].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers  # its TimmWrapperModel, which imports timm, only where it is needed
from safetensors.torch import load_file
from torch import Tensor

from components.models.families import FAMILIES
from components.models.pretrained import RESNETS, TIMM
from components.models.resnet import SMALL_IMAGE

# the model_type of a saved backbone that gives a sequence; the others are saved as their vision towers
SEQUENCES = tuple(kind for kind in FAMILIES if kind not in ("vit_mae", "siglip", "clip"))
TOWERS = (*SEQUENCES, TIMM, *RESNETS)
FEWEST_PLACES = 16  # of a CNN's map; with 4 the language model hardly sees what is where (benchmarks/eyes.md)


def tower_problem(backbone: Path) -> str | None:
    """Returns why the backbone in this folder cannot be a vision tower, or None if it can.

    Raises ValueError if the folder holds no backbone.
    """
    file = backbone / "config.json"
    if not file.is_file():
        raise ValueError(f"{backbone} holds no backbone: config.json is missing; run the pretrain stage first")
    config = json.loads(file.read_text(encoding="utf-8"))
    kind = config["model_type"]
    if kind not in TOWERS:
        return f"the language model sees through {', '.join(TOWERS)}, and this backbone is a {kind}"
    if kind in RESNETS and config["image_size"] <= SMALL_IMAGE:
        return (
            f"no class of transformers has the first layer of a {kind} for images of at most {SMALL_IMAGE} pixels; "
            f"for answers train it with an image_size above {SMALL_IMAGE}, or set backbone: {{kind: vit, …}} in "
            "pretrain.common, or connect.method to a method whose own section has it"
        )
    if kind == TIMM and not _is_map(tower := read_tower(backbone)):
        return (
            f"timm's {tower.config.architecture} gives no map [B, D, h, w], as the language model expects of timm's "
            f"models; choose one of timm's CNNs, or a checkpoint of {', '.join(SEQUENCES)}"
        )
    return None


def read_tower(backbone: Path) -> Any:
    """Returns the backbone as transformers' class of its family, without a pooling head, which no token needs."""
    config = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    kind = config["model_type"]
    tower: Any
    if kind in RESNETS:  # timm's parameters have torchvision's names
        size, pixels = config["image_size"], {name: config[name] for name in ("mean", "std")}
        values = {"architecture": kind, "pretrained_cfg": {**pixels, "input_size": [3, size, size]}}
        tower = transformers.TimmWrapperModel(transformers.TimmWrapperConfig(**values))
        tower.timm_model.load_state_dict(load_file(backbone / "model.safetensors"))
        return tower.eval()
    if kind == TIMM:
        return transformers.TimmWrapperModel.from_pretrained(backbone).eval()
    family = FAMILIES[kind]
    tower = family.transformer.from_pretrained(backbone, **family.load_options)
    if hasattr(tower, "head"):
        tower.config.vision_use_head = tower.use_head = False
        del tower.head
    return tower.eval()


@torch.no_grad()
def features_of(tower: Any, size: int) -> Tensor:
    """Returns what the tower makes of one black square of `size` pixels: [1, N, D], or a CNN's map [1, D, h, w]."""
    return tower(torch.zeros(1, 3, size, size)).last_hidden_state


def image_size(images: Any) -> int:
    """Returns the side in pixels of the squares that an image processor makes."""
    side: int = (images.crop_size if images.do_center_crop else images.size)["height"]
    return side


def square_size(backbone: Path) -> int | None:
    """Returns the pixels of squares for which a CNN's map has FEWEST_PLACES: the backbone's, doubled where it has less.

    None for a transformer, which sees squares of one size.
    """
    if json.loads((backbone / "config.json").read_text(encoding="utf-8"))["model_type"] in SEQUENCES:
        return None
    tower = read_tower(backbone)
    size: int = tower.config.pretrained_cfg["input_size"][-1]
    while features_of(tower, size).shape[2:].numel() < FEWEST_PLACES:
        size *= 2
    return size


def resize(tower: Any, images: Any, size: int) -> None:
    """Lets a CNN and its image processor see squares of `size` pixels. Raises ValueError for any other tower."""
    if not isinstance(tower, transformers.TimmWrapperModel):
        raise ValueError(
            f"connect.image_size: {size}: only a CNN sees squares of another size than it was trained on, and this "
            f"backbone is a {tower.config.model_type}; leave image_size out, or set it for the backbone in pretrain"
        )
    tower.config.pretrained_cfg = {**tower.config.pretrained_cfg, "input_size": [3, size, size]}
    if images.do_center_crop:
        images.size, images.crop_size = {"shortest_edge": size}, {"height": size, "width": size}
    else:
        images.size = {"height": size, "width": size}


def as_sequence(features: Tensor) -> Tensor:
    """Returns last_hidden_state as the projector sees it, [B, N, D]."""
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def _is_map(tower: Any) -> bool:
    size = tower.config.pretrained_cfg["input_size"][-1]
    shape = features_of(tower, size).shape  # some transformers have maps [B, h, w, D]
    return len(shape) == 4 and shape[1] == tower.timm_model.num_features
