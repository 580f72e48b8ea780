"""A linear classifier on the frozen features of whole images, saved so that it runs without this project.

A ViT becomes transformers' ViTForImageClassification, a ResNet for images of more than 64 pixels its
ResNetForImageClassification (the same network as torchvision's, its parameters named differently). No class of
transformers has the 3 × 3 stem of a ResNet for small images: that one is saved as torchvision's ResNet with its `fc`.
The features' standardization is folded into the head's weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, ResNetForImageClassification, ViTForImageClassification

from components.machine import make_readable
from components.models.backbone import Backbone, ViT
from components.models.resnet import SMALL_IMAGE
from components.training.objective import Objective

# as torchvision's, which has the stride of a bottleneck in its 3 x 3 convolution
RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "resnet50": {"layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]},
}


class LinearHead(Objective):
    """Features [B, D] -> logits [B, C]; an Objective on batches of (features, labels [B])."""

    mean: Tensor
    std: Tensor

    def __init__(self, bank: Tensor, classes: int) -> None:
        """bank: training features [N, D]; features are standardized by their mean and standard deviation."""
        super().__init__()
        self.register_buffer("mean", bank.mean(0))
        self.register_buffer("std", bank.std(0).clamp_min(1e-6))
        self.linear = nn.Linear(bank.shape[1], classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def logits(self, features: Tensor) -> Tensor:
        return self.linear((features - self.mean) / self.std)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        features, labels = batch
        logits = self.logits(features)
        return {"loss": cross_entropy(logits, labels), "accuracy": (logits.argmax(1) == labels).float().mean()}

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Returns one linear layer on raw features that gives the same logits."""
        layer = nn.Linear(*self.linear.weight.shape[::-1])
        layer.weight.copy_(self.linear.weight / self.std)
        layer.bias.copy_(self.linear.bias - layer.weight @ self.mean)
        return layer


def save(folder: Path, backbone: Backbone, head: nn.Linear, classes: tuple[str, ...]) -> None:
    """Write backbone and head (on raw features) as one classifier with named classes."""
    backbone.save(folder)  # for the preprocessor; the weights are replaced next
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}
    model: Any
    if isinstance(backbone, ViT):
        config = backbone.trunk.config
        model = ViTForImageClassification(config.from_dict({**config.to_dict(), **labels}))
        model.vit.load_state_dict(backbone.trunk.state_dict())
        model.classifier.load_state_dict(head.state_dict())
        model.save_pretrained(folder)
    elif backbone.config.image_size > SMALL_IMAGE:
        make: Any = ResNetConfig
        model = ResNetForImageClassification(make(**RESNETS[backbone.config.kind], **labels))
        model.resnet.load_state_dict({stock_name(name): value for name, value in backbone.trunk.state_dict().items()})
        model.classifier[-1].load_state_dict(head.state_dict())
        model.save_pretrained(folder)
    else:
        weights = {**backbone.trunk.state_dict(), "fc.weight": head.weight.detach(), "fc.bias": head.bias.detach()}
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"library": "torchvision", "stem": "conv1 3 x 3, stride 1, padding 1; no maxpool", "classes": classes}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    make_readable(folder)


def stock_name(name: str) -> str:
    """Returns the name in transformers' ResNetModel of a parameter or buffer of torchvision's ResNet."""
    name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.", name)
    name = re.sub(r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution.", name)
    name = re.sub(r"\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization.", name)
    return name.replace(".downsample.0.", ".shortcut.convolution.").replace(
        ".downsample.1.", ".shortcut.normalization."
    )
