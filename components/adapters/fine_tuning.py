"""A backbone and a linear layer on it, trained together: all weights, or low-rank updates of its attention (LoRA).

The linear layer starts as the one that was trained on the frozen backbone: a random one would spoil good features in
the first steps (Kumar et al., ICLR 2022, https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from torch import Tensor, nn

from components.adapters.heads import LinearHead
from components.models.backbone import Backbone
from components.training.lora import LoRA, add_lora
from components.training.objective import Objective

if TYPE_CHECKING:
    from peft import LoraModel

# an attention's projections of queries and values (LoRA, section 4.2); models of timm have one layer for q, k and v
TARGETS = ("q_proj", "v_proj", "qkv")


class FineTuned(Objective):
    """Pixels -> logits [B, C]; an Objective on batches of (pixels, labels), as Head.

    Batch norm keeps the statistics of the backbone, since few photos would estimate their own badly.
    """

    def __init__(self, backbone: Backbone, head: LinearHead) -> None:
        super().__init__()
        self.backbone, self.head = deepcopy(backbone), deepcopy(head)
        self.backbone.fixed_statistics = True

    def logits(self, pixels: Tensor) -> Tensor:
        return self.head.logits(self.backbone(pixels))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        pixels, labels = batch
        return self.head.losses(self.logits(pixels).float(), labels)


def targets(backbone: Backbone) -> list[str]:
    """Returns those of TARGETS that name linear layers of the backbone."""
    layers = {name.rpartition(".")[2] for name, layer in backbone.trunk.named_modules() if isinstance(layer, nn.Linear)}
    return [name for name in TARGETS if name in layers]


def lora_problem(backbone: Backbone) -> str | None:
    """Returns why LoRA cannot be used with this backbone, None if it can."""
    if targets(backbone):
        return None
    kind = backbone.config.kind if backbone.origin is None else backbone.origin.model_type
    return (
        f"kind lora updates layers of an attention, called {', '.join(TARGETS)}, and this backbone ({kind}) has no "
        "such layers, as CNNs have none; try kind: full"
    )


def add_updates(objective: FineTuned, lora: LoRA, seed: int) -> LoraModel:
    """Freezes the backbone and gives its attention trainable updates. Returns what `merge` needs.

    Raises ValueError if the backbone has no attention.
    """
    if reason := lora_problem(objective.backbone):
        raise ValueError(reason)
    objective.backbone.requires_grad_(requires_grad=False)
    return add_lora(objective.backbone.trunk, lora, seed, targets(objective.backbone))


def trained_parameters(module: nn.Module) -> int:
    """Returns how many numbers training changes."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
