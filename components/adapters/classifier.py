"""A good backbone needs no more than a plane between classes; with it, it is a stock image classifier.

A linear head on the frozen features of whole pictures, trained by the one loop. What is saved is transformers'
ViTForImageClassification (or torchvision's ResNet with its `fc`), with the features' standardization folded into the
head's weights, so that nothing of ours is needed to run it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViTForImageClassification

from components.models.backbone import Backbone, ViT
from components.training.objective import Objective


class LinearHead(Objective):
    """features [B, D] -> logits [B, C]; as an Objective it reads (features, labels [B])."""

    mean: Tensor
    std: Tensor

    def __init__(self, bank: Tensor, classes: int) -> None:
        """bank: training features [N, D], whose mean and deviation standardize all others."""
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
        """One linear layer on the raw features that gives the same logits."""
        layer = nn.Linear(*self.linear.weight.shape[::-1])
        layer.weight.copy_(self.linear.weight / self.std)
        layer.bias.copy_(self.linear.bias - layer.weight @ self.mean)
        return layer


def save(folder: Path, backbone: Backbone, head: nn.Linear, classes: tuple[str, ...]) -> None:
    """Write backbone and head (on raw features) as one stock classifier, its classes named."""
    backbone.save(folder)  # for the preprocessor; its weights are replaced next
    if isinstance(backbone, ViT):
        config = backbone.trunk.config.from_dict(
            {
                **backbone.trunk.config.to_dict(),
                "id2label": dict(enumerate(classes)),
                "label2id": {name: index for index, name in enumerate(classes)},
            }
        )
        model = ViTForImageClassification(config)
        model.vit.load_state_dict(backbone.trunk.state_dict())
        model.classifier.load_state_dict(head.state_dict())
        model.save_pretrained(folder)
        return
    weights = load_file(folder / "model.safetensors")
    save_file(
        {**weights, "fc.weight": head.weight.detach(), "fc.bias": head.bias.detach()}, folder / "model.safetensors"
    )
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**said, "classes": classes}, indent=2) + "\n", encoding="utf-8")
