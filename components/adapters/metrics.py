"""Measures a trained classifier: accuracy, calibration, few labels, and how far it is above a linear one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.adapters.task import Task, Trained
from components.evaluation.calibration import calibration, fit_temperature
from components.evaluation.few_labels import few_labels
from components.evaluation.scoring import FEWEST_VAL
from components.evaluation.statistics import paired_difference, proportion_with_ci


def measure(task: Task, trained: Trained, linear: Trained) -> tuple[float, dict[str, Any]]:
    """Returns the temperature, fitted on val, and the metrics on test."""
    photos, test = task.photos, task.photos.rows("test", labeled=True)
    logits, labels = trained.logits(task, test), photos.labels(test)
    predicted, majority = logits.argmax(1), photos.labels(task.train).mode().values
    temperature, fitted_on = 1.0, f"nothing: fewer than {FEWEST_VAL} labeled val photos"
    if len(task.val):
        temperature = fit_temperature(trained.logits(task, task.val), photos.labels(task.val))
        fitted_on = f"the {len(task.val)} labeled val photos"
    table = confusion(labels, predicted, len(photos.classes))
    metrics: dict[str, Any] = {
        "accuracy": _accuracy(predicted, labels),
        "balanced_accuracy": balanced_accuracy(table),
        "majority": _accuracy(majority.expand(len(labels)), labels),
        "trained_parameters": trained.parameters,
        "calibration": {
            "temperature": temperature,
            "fitted_on": fitted_on,
            **calibration(logits, labels, temperature),
        },
        "few_labels": few_labels(task.vectors, photos),
    }
    if trained is not linear:
        correct, others = predicted == labels, linear.logits(task, test).argmax(1) == labels
        metrics["linear"] = proportion_with_ci(int(others.sum()), len(labels))
        metrics["above_linear"] = paired_difference(correct, others)
    if trained.kept is not None:
        metrics |= {"kept_epoch": trained.kept, "epochs": trained.epochs}
    return temperature, {**metrics, "classes": list(photos.classes), "confusion": table}


def confusion(true: Tensor, predicted: Tensor, classes: int) -> list[list[int]]:
    """Returns counts, a row for each true class and a column for each predicted one."""
    return torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, classes).tolist()


def balanced_accuracy(table: list[list[int]]) -> float:
    """Returns the mean over classes of the accuracy on their photos, from a confusion matrix. Empty classes are out."""
    shares = [row[place] / sum(row) for place, row in enumerate(table) if sum(row)]
    return sum(shares) / len(shares)


def _accuracy(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    return proportion_with_ci(int((predicted == labels).sum()), len(labels))
