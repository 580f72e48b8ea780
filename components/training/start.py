"""How training goes on from published weights: slowly, the head first, the lower layers slowest."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, Field
from torch import nn

from components.config import Fraction, PositiveFraction, Strict
from components.models.backbone import Backbone

Settings = TypeVar("Settings", bound=BaseModel)


class Start(Strict):
    """The backbone's rates, as factors of those of the new heads, whose weights are random."""

    frozen: Fraction = 0.1  # share of the run in which only the heads train; lightly-train advises it (off by default)
    backbone_lr: PositiveFraction = 0.1  # heads ten times as fast: usual for fine-tuning
    layer_decay: PositiveFraction = 0.9  # per block, from the last one down (DINOv2's ssl_default_config.yaml)
    patch_lr: PositiveFraction = 0.2  # of the patch embedding (DINOv2, DINOv3)
    momentum: Fraction = 0.996  # of an EMA teacher or key encoder, at least: DINO, BYOL; DINOv2: 0.992 to 0.994
    measured: int = Field(5, ge=1)  # times during the run that the features are compared with the start's


def slowed(settings: Settings, start: Start) -> Settings:
    """Returns a method's settings with an EMA momentum of at least `start.momentum`, if it has one.

    In a short run from random weights an average has to move fast, but one of published weights starts well.
    """
    momentum = getattr(settings, "momentum", None)
    if momentum is None or momentum >= start.momentum:
        return settings
    return settings.model_copy(update={"momentum": start.momentum})


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
