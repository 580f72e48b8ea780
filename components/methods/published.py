"""No training: a published backbone as it is, which every stage can then measure and use.

Its row in the report says what other methods must improve on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from components.data.augment import View
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone
from components.training.optim import AdamW, Optimizer


class AsPublishedConfig(MethodConfig):
    """There is nothing to set: choose the weights by `backbone: {kind: published, from: …}`."""

    optimizer: Optimizer = AdamW(lr=1e-3)  # without effect


class AsPublished(Method):
    trains = False

    @staticmethod
    def views(config: Any, image_size: int) -> tuple[View]:  # noqa: ARG004
        return (View(image_size),)

    def __init__(self, backbone: Backbone, config: AsPublishedConfig) -> None:
        super().__init__(config)
        if backbone.origin is None:
            raise ValueError("the method published needs published weights: backbone: {kind: published, from: …}")
        self.backbone = backbone

    def forward(self, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002
        raise AssertionError("the method published does not train")

    def keep(self) -> Backbone:
        return self.backbone
