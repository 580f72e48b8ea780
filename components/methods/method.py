"""The base class of all training methods, and of their settings."""

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
    """A method's own settings, with the paper's values as defaults. Every method sets a default optimizer."""

    optimizer: Optimizer


class Method(Objective, ABC):
    """One objective: four methods to write. Inherit from it once, never twice. Objective has two more hooks.

    views       what is a batch made of?              its fields: augmented views, labels … (data.fields)
    forward     what is minimized?                    the loss of one batch, on the device
    after_step  what changes outside the gradient?    EMA copies, queues, centers
    keep        what is saved after training?         a backbone
    """

    trains = True  # False: the backbone is saved as it starts

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config: Any = config

    @staticmethod
    @abstractmethod
    def views(config: Any, image_size: int) -> Sequence[Field]: ...

    @staticmethod
    def resolve(config: Any, photos: Photos) -> Any:  # noqa: ARG004
        """Returns the settings with those that depend on the photos filled in, such as the number of classes.

        Raises ValueError if the photos do not have it either.
        """
        return config

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world_size: int) -> None:
        """Raises ValueError, before training starts, if the settings do not fit the number of photos or processes."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars by name; "loss" is minimized, the others are only logged."""

    @abstractmethod
    def keep(self) -> Backbone: ...


class Recipe(NamedTuple):
    """A method with the default settings of one paper or script."""

    method: Any  # type[Method], called as method(backbone, config)
    config: type[MethodConfig]

    @property
    def modules(self) -> set[str]:
        """Returns the names of the modules that define the method and its config."""
        return {self.method.__module__, self.config.__module__}
