"""How training goes on from published weights: slowly, the head first, the lower layers slowest."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from components.config import Fraction, PositiveFraction, Strict
from components.models.backbone import Backbone


class Start(Strict):
    """The backbone's rates, as factors of those of the new heads, whose weights are random."""

    frozen: Fraction = 0.1  # share of the run in which only the heads train; lightly-train advises it (off by default)
    backbone_lr: PositiveFraction = 0.1  # heads ten times as fast: usual for fine-tuning
    layer_decay: PositiveFraction = 0.9  # per block, from the last one down (DINOv2's ssl_default_config.yaml)
    patch_lr: PositiveFraction = 0.2  # of the patch embedding (DINOv2, DINOv3)
    measured: int = Field(5, ge=1)  # times during the run that the features are compared with the start's


def rates(module: nn.Module, start: Start) -> dict[str, float]:
    """Returns the factor of the learning rate of every parameter of a trained backbone, by its name in `module`."""
    factors: dict[str, float] = {}
    for prefix, backbone in module.named_modules():
        if not isinstance(backbone, Backbone):
            continue
        layers = backbone.layers()
        top = max(layers.values())
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                factor = start.backbone_lr * start.layer_decay ** (top - layers[name])
                factors[f"{prefix}.{name}"] = factor * (start.patch_lr if layers[name] == 0 else 1.0)
    return factors
