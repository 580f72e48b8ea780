"""A tiny checkpoint of every family of published backbones, with random weights, as transformers' classes save it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from transformers.models.vit import ViTImageProcessor

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SQUARE: dict[str, Any] = {**SHAPE, "image_size": 16, "patch_size": 4}
PATCH14: dict[str, Any] = {**SHAPE, "image_size": 28, "patch_size": 14}  # as published: of 518 pixels
TEXT: dict[str, Any] = {**SHAPE, "vocab_size": 9}
PIXELS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "input_size": (3, 32, 32)}

MAKERS: dict[str, Callable[[], Any]] = {
    "vit": lambda: t.ViTModel(t.ViTConfig(**SQUARE)),
    "vit_mae": lambda: t.ViTMAEModel(t.ViTMAEConfig(**SQUARE)),
    "deit": lambda: t.DeiTModel(t.DeiTConfig(**SQUARE)),
    "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**PATCH14, drop_path_rate=0.3)),
    "dinov2_with_registers": lambda: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**PATCH14)),
    "dinov3_vit": lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**SQUARE, num_register_tokens=4, drop_path_rate=0.3)),
    "siglip": lambda: t.SiglipModel(t.SiglipConfig(text_config=TEXT, vision_config=SQUARE)),
    "siglip_vision_model": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**SQUARE)),
    "clip": lambda: t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=SQUARE, projection_dim=8)),
    "clip_vision_model": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**SQUARE)),
    "ijepa": lambda: t.IJepaModel(t.IJepaConfig(**SQUARE)),
    "timm_wrapper": lambda: t.TimmWrapperModel(t.TimmWrapperConfig(architecture="resnet10t", pretrained_cfg=PIXELS)),
}


def checkpoint(family: str, folder: Path) -> Path:
    """Writes the checkpoint and, but for timm's, its image processor. Returns the folder."""
    torch.manual_seed(0)
    model = MAKERS[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # some classes start these at zero, which would hide mistakes
            if "token" in name or "position" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    if family != "timm_wrapper":
        size = {"height": 16, "width": 16}
        ViTImageProcessor(size=size, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]).save_pretrained(folder)
    return folder
