"""Measures a trained classifier: how often it is right, calibration, few labels, how far it is above a linear one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.adapters.task import Task, Trained
from components.evaluation.calibration import calibration, fit_temperature
from components.evaluation.scoring import FEWEST_LABELS

MISTAKES = 12


def measure(task: Task, trained: Trained, linear: Trained) -> tuple[float, dict[str, Any]]:
    """Returns the temperature, fitted on val, and the metrics on test."""
    target, test = task.target, task.target.rows("test")
    logits, labels = trained.logits(task, test), target.labels(test)
    temperature, fitted_on = 1.0, f"nothing: fewer than {FEWEST_LABELS} labeled val photos"
    if len(task.val):
        temperature = fit_temperature(trained.logits(task, task.val), target.labels(task.val))
        fitted_on = f"the {len(task.val)} labeled val photos"
    metrics: dict[str, Any] = {
        **target.scores(logits, labels),
        "trained_parameters": trained.parameters,
        "calibration": {
            "temperature": temperature,
            "fitted_on": fitted_on,
            **calibration(logits, labels, temperature),
        },
        **target.few_labels(task.vectors),
    }
    if trained is not linear:
        metrics |= target.above_linear(logits, linear.logits(task, test), labels)
    if trained.best_epoch is not None:
        metrics |= {"kept_epoch": trained.best_epoch, "epochs": trained.epochs}
    if not target.multi_label:
        metrics["mistakes"] = worst_mistakes(logits / temperature, labels, test, target.classes)
    return temperature, {**metrics, "classes": list(target.classes), **target.by_class(logits, labels)}


def worst_mistakes(logits: Tensor, labels: Tensor, rows: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns the wrong predictions of which the classifier is most certain, at most MISTAKES, the worst first.

    logits: [N, C]; labels: int64 [N]; rows: of the photos, which stand in each entry as `row`.
    """
    probabilities, predicted = logits.softmax(1).max(1)
    confidence = torch.where(predicted == labels, -1.0, probabilities)
    worst = confidence.argsort(descending=True, stable=True)[: min(MISTAKES, int((predicted != labels).sum()))]
    return [
        {"row": int(rows[index]), "predicted": classes[predicted[index]], "probability": float(probabilities[index])}
        for index in worst.tolist()
    ]
