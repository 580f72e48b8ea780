"""What a self-supervised method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from components.config import Strict
from components.data.augment import View
from components.models.backbone import Backbone
from components.training.optim import Optimizer

Batch = Any  # one uint8 tensor [B, 3, S, S] a view; only the method that described the views looks inside


class MethodConfig(Strict):
    """A method's own settings, the paper's as defaults. Every method states its optimizer."""

    optimizer: Optimizer


class Method(nn.Module, ABC):
    """One objective, in four answers. Inherited once, never twice.

    views       how is a picture looked at?           in words; carried out by data.augment
    forward     what is minimized?                    on the device, one batch
    after_step  what moves outside the gradient?      slow copies, schedules
    keep        what survives training?               a backbone
    """

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config: Any = config

    @staticmethod
    @abstractmethod
    def views(config: Any, image_size: int) -> Sequence[View]: ...

    @staticmethod
    def check(config: Any, pictures: int, batch_size: int, world: int) -> None:
        """Raise ValueError, before training starts, where these settings cannot work on this data."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; "loss" is minimized, the others are only logged."""

    def after_step(self, progress: float) -> None:
        """Once an optimizer step; `progress` runs from 0 to 1 over the whole of training."""

    @abstractmethod
    def keep(self) -> Backbone: ...


class Recipe(NamedTuple):
    """A method, and the settings that one paper or one script gave it."""

    method: Any  # type[Method], called as method(backbone, config)
    config: type[MethodConfig]
