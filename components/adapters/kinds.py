"""The kinds of classifier, with the settings that each of them has alone and its default length and rates.

linear      a linear layer on the features of the frozen backbone
mlp         one hidden layer on them
attention   attention over the patches' tokens of the frozen backbone, with one learned query
lora        low-rank updates of the attention's weights, and a linear layer
full        all weights, the lower layers more slowly, and a linear layer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.config import PositiveFraction, Strict
from components.training.optim import AdamW, Cosine

Kind = Literal["linear", "mlp", "attention", "lora", "full"]
Balance = Literal["none", "weights"]
TUNED: tuple[Kind, ...] = ("lora", "full")  # that change the backbone


class MLP(Strict):
    hidden: int = Field(512, ge=1)


class Attentive(Strict):
    heads: int = Field(8, ge=1)  # must divide the features of a token


class Full(Strict):
    layer_decay: PositiveFraction = 0.75  # of the rate, per block from the last one down (BEiT; timm's default)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a kind is trained, where the settings do not say so."""

    epochs: int
    batch_size: int
    optimizer: Any  # an Optimizer


RECIPES: dict[Kind, Recipe] = {
    "linear": Recipe(50, 256, AdamW(lr=1e-2, weight_decay=1e-2)),
    "mlp": Recipe(50, 256, AdamW(lr=1e-3, weight_decay=1e-2)),
    # epochs, rate and decay as configs/evals/vitl16_in1k.yaml of V-JEPA's code
    "attention": Recipe(20, 256, AdamW(lr=1e-3, weight_decay=1e-3)),
    "lora": Recipe(20, 128, AdamW(lr=1e-3, weight_decay=1e-2, clip=1.0, schedule=Cosine(warmup=0.1))),
    # rate, decay and warm-up: MAE's fine-tuning (https://arxiv.org/abs/2111.06377, table 9)
    "full": Recipe(20, 128, AdamW(lr=5e-4, weight_decay=0.05, clip=1.0, schedule=Cosine(warmup=0.05))),
}


def filled(kind: Kind, values: dict[str, Any]) -> dict[str, Any]:
    """Returns epochs, batch_size and optimizer: those of `values`, and the kind's where they are None."""
    recipe = RECIPES[kind]
    defaults = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "optimizer": recipe.optimizer}
    return {name: default if values.get(name) is None else values[name] for name, default in defaults.items()}


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Returns the weight of each class in the loss, float32 [C]: all classes together weigh the same.

    N / (C · photos of the class), with C the classes that have a photo, so that the mean over photos is 1; 0 for a
    class without one. labels: int64 [N].
    """
    counts = labels.bincount(minlength=classes).float()
    weights = len(labels) / ((counts > 0).sum() * counts.clamp_min(1))
    return torch.where(counts > 0, weights, 0.0)
