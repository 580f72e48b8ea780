"""What a classifier is trained from, and what a trained one consists of."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from components.adapters.heads import Head, Standardized
from components.adapters.kinds import Recipe
from components.adapters.pixel_classifier import PixelClassifier, photo_logits
from components.adapters.target import Target
from components.data.photos import Photos
from components.evaluation.features import features
from components.evaluation.scoring import FEWEST_LABELS
from components.models.backbone import Backbone
from components.training.monitor import Run


@dataclass(frozen=True)
class Task:
    """What classifiers of all kinds are trained from. state: a folder for unfinished runs.

    backbone: as `as_stock` leaves it. weights: in the loss, see Target.class_weights, or None.
    """

    target: Target
    backbone: Backbone
    weights: Tensor | None
    seed: int
    state: Path
    acc: Accelerator

    @property
    def photos(self) -> Photos:
        return self.target.photos

    @cached_property
    def vectors(self) -> Tensor:
        """The features of all photos, float32 [N, D]."""
        return features(self.backbone, self.photos)

    @cached_property
    def train(self) -> np.ndarray:
        return self.target.rows("train")

    @cached_property
    def val(self) -> np.ndarray:
        """Rows of the photos that choices are made on; none if they are too few for it."""
        rows = self.target.rows("val")
        return rows if len(rows) >= FEWEST_LABELS else rows[:0]

    def run(self, kind: str, recipe: Recipe) -> Run:
        state, size = self.state / kind, min(recipe.batch_size, len(self.train))
        length: dict[str, Any] = {"per_epoch": len(self.train) // size, "batch_size": size}
        length["steps"] = recipe.epochs * length["per_epoch"]
        return Run(f"adapt {kind}", **length, log=state / "log.jsonl", state=state, seed=self.seed)


@dataclass(frozen=True)
class Trained:
    """A trained classifier: a head on outputs of the backbone.

    parameters: how many numbers were trained; log: what the loop wrote. epochs: the quality on val;
    best_epoch: after how many epochs the weights were the best there; None where all were trained to the end.
    """

    head: Head
    backbone: Backbone
    parameters: int
    log: Path
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None

    def model(self, temperature: float = 1.0) -> PixelClassifier:
        return PixelClassifier(self.backbone, self.head.deployed(temperature), self.head.reads)

    @torch.no_grad()
    def logits(self, task: Task, rows: np.ndarray) -> Tensor:
        """Returns the logits of some photos: float32 [rows, C]."""
        if isinstance(self.head, Standardized) and self.backbone is task.backbone:
            return self.head.logits(task.vectors[rows])
        return photo_logits(self.model(), task.photos, rows)
