"""What a self-supervised method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from components.config import Strict
from components.data.fields import Field
from components.data.photos import Photos
from components.models.backbone import Backbone
from components.training.objective import Objective
from components.training.optim import Optimizer

Batch = Any  # one tensor [B, ...] for each field that `views` names, in their order


class MethodConfig(Strict):
    """A method's own settings, the paper's as defaults. Every method states its optimizer."""

    optimizer: Optimizer


class Method(Objective, ABC):
    """One objective, in four answers. Inherited once, never twice. The two hooks more that exist are in Objective.

    views       which views of a photo are made?      in as fields of a batch (data.fields)
    forward     what is minimized?                    on the device, one batch
    after_step  what moves outside the gradient?      slow copies, queues, centers
    keep        what survives training?               a backbone
    """

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config: Any = config

    @staticmethod
    @abstractmethod
    def views(config: Any, image_size: int) -> Sequence[Field]: ...

    @staticmethod
    def resolve(config: Any, photos: Photos) -> Any:  # noqa: ARG004
        """The settings with what only the data know (the number of classes).

        Raises ValueError where the data do not know it either.
        """
        return config

    @staticmethod
    def check(config: Any, pictures: int, batch_size: int, world: int) -> None:
        """Raise ValueError, before training starts, where these settings cannot work on this data."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; "loss" is minimized, the others are only logged."""

    @abstractmethod
    def keep(self) -> Backbone: ...


class Recipe(NamedTuple):
    """A method with the default settings of one paper or script."""

    method: Any  # type[Method], called as method(backbone, config)
    config: type[MethodConfig]

    @property
    def modules(self) -> set[str]:
        """The names of the modules that define the two."""
        return {self.method.__module__, self.config.__module__}
