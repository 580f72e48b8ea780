"""What a classifier learns of photos, and how it is measured: the one class of each photo, or all of its labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from components.adapters.kinds import class_weights
from components.data.fields import AllLabels, Field, Labels
from components.data.label_sets import LabelSets
from components.data.photos import Photos
from components.evaluation.few_labels import few_labels
from components.evaluation.scoring import cannot_score
from components.evaluation.several_labels import (
    average_precision,
    labels_loss,
    mean_average_precision,
    precision_difference,
    precision_with_ci,
)
from components.evaluation.statistics import paired_difference, proportion_with_ci


class Target(ABC):
    """classes: the names of a classifier's outputs; field: of a training batch, the photos' labels."""

    multi_label = False  # True: a photo may have several labels
    photos: Photos
    classes: tuple[str, ...]
    field: Field

    @abstractmethod
    def problem(self) -> str | None:
        """Returns why no classifier can be trained and measured, None if one can."""

    @abstractmethod
    def rows(self, split: str) -> np.ndarray:
        """Returns the row numbers of the photos of a split that have a label, int64, in order."""

    @abstractmethod
    def labels(self, rows: np.ndarray) -> Tensor:
        """Returns the labels of photos, with the photos along the first axis."""

    @abstractmethod
    def class_weights(self) -> Tensor:
        """Returns weights for the loss with which classes, or yes and no, count the same over the training photos."""

    @abstractmethod
    def quality(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Returns two numbers to choose an epoch by: a higher first one is better; if equal, a lower second one."""

    @abstractmethod
    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """Returns the metrics of a classifier on these photos, and of a baseline that does not look at them."""

    @abstractmethod
    def above_linear(self, logits: Tensor, linear: Tensor, labels: Tensor) -> dict[str, Any]:
        """Returns the main metric of the linear classifier, and by how much that of `logits` is above it."""

    @abstractmethod
    def by_class(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """Returns what is measured of each class."""

    @abstractmethod
    def few_labels(self, vectors: Tensor) -> dict[str, Any]:
        """Returns the accuracy with a few labels of each class. vectors: features of all photos [N, D]."""


class OneLabel(Target):
    """labels: int64 [N], indices into `classes`."""

    def __init__(self, photos: Photos) -> None:
        self.photos, self.classes, self.field = photos, photos.classes, Labels()

    def problem(self) -> str | None:
        return cannot_score(self.photos)

    def rows(self, split: str) -> np.ndarray:
        return self.photos.rows(split, labeled=True)

    def labels(self, rows: np.ndarray) -> Tensor:
        return self.photos.labels(rows)

    def class_weights(self) -> Tensor:
        return class_weights(self.labels(self.rows("train")), len(self.classes))

    def quality(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        accuracy = float((logits.argmax(1) == labels).float().mean())
        return {"accuracy": accuracy, "cross_entropy": float(cross_entropy(logits, labels))}

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        most_frequent = self.labels(self.rows("train")).mode().values
        return {
            "accuracy": _accuracy(logits.argmax(1), labels),
            "balanced_accuracy": balanced_accuracy(confusion(labels, logits.argmax(1), len(self.classes))),
            "majority": _accuracy(most_frequent.expand(len(labels)), labels),
        }

    def above_linear(self, logits: Tensor, linear: Tensor, labels: Tensor) -> dict[str, Any]:
        correct, linear_correct = logits.argmax(1) == labels, linear.argmax(1) == labels
        return {
            "linear": _accuracy(linear.argmax(1), labels),
            "above_linear": paired_difference(correct, linear_correct),
        }

    def by_class(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        return {"confusion": confusion(labels, logits.argmax(1), len(self.classes))}

    def few_labels(self, vectors: Tensor) -> dict[str, Any]:
        return {"few_labels": few_labels(vectors, self.photos)}


class SeveralLabels(Target):
    """labels: bool [N, C], whether a photo shows a class.

    Labels that no training photo has are left out; a photo that has no others counts as unlabeled.
    """

    multi_label = True

    def __init__(self, photos: Photos, sets: LabelSets) -> None:
        self.photos, self.sets, self.classes, self.field = photos, sets, sets.classes, AllLabels(len(sets.classes))

    def problem(self) -> str | None:
        if not len(self.rows("test")):
            return "no test photo has a label that training photos have"
        labels = self.labels(self.rows("train"))
        return "all labeled training photos have the same labels" if (labels == labels[0]).all() else None

    def rows(self, split: str) -> np.ndarray:
        rows = self.photos.rows(split)
        return rows[self.sets.labeled()[rows]]

    def labels(self, rows: np.ndarray) -> Tensor:
        return self.sets.matrix(rows)

    def class_weights(self) -> Tensor:
        """Returns the weights of no and yes, float32 [2, C]: as those of two classes, for each class by itself."""
        labels = self.labels(self.rows("train"))
        return torch.stack([class_weights(column.long(), 2) for column in labels.T], 1)

    def quality(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        return {
            "mean_average_precision": mean_average_precision(logits, labels),
            "cross_entropy": float(labels_loss(logits, labels)),
        }

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        shares = labels.double().mean(0)
        return {
            "mean_average_precision": precision_with_ci(logits, labels),
            "chance": float(shares[shares > 0].mean()),  # the precision of a random order
        }

    def above_linear(self, logits: Tensor, linear: Tensor, labels: Tensor) -> dict[str, Any]:
        return {
            "linear": precision_with_ci(linear, labels),
            "above_linear": precision_difference(logits, linear, labels),
        }

    def by_class(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        precisions = average_precision(logits, labels).tolist()
        counts = labels.sum(0).tolist()
        return {
            "by_class": {
                name: {"average_precision": value if count else None, "chance": count / len(labels), "photos": count}
                for name, value, count in zip(self.classes, precisions, counts, strict=True)
            }
        }

    def few_labels(self, vectors: Tensor) -> dict[str, Any]:  # noqa: ARG002
        why = "a photo with several labels counts for several classes, so that no number of labels a class can be set"
        return {"not_measured": {"few_labels": why}}


def target_of(photos: Photos) -> Target:
    """Returns what is learned of the photos: all labels, if at least one training photo has several."""
    return SeveralLabels(photos, photos.label_sets) if photos.label_sets else OneLabel(photos)


def confusion(true: Tensor, predicted: Tensor, classes: int) -> list[list[int]]:
    """Returns counts, a row for each true class and a column for each predicted one."""
    return torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, classes).tolist()


def balanced_accuracy(table: list[list[int]]) -> float:
    """Returns the mean over classes of the accuracy on their photos, from a confusion matrix. Empty classes are out."""
    shares = [row[index] / sum(row) for index, row in enumerate(table) if sum(row)]
    return sum(shares) / len(shares)


def _accuracy(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    return proportion_with_ci(int((predicted == labels).sum()), len(labels))
