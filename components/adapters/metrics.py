"""Measures a trained classifier: how often it is right, calibration, few labels, how far it is above a linear one."""

from __future__ import annotations

from typing import Any

from components.adapters.task import Task, Trained
from components.evaluation.calibration import calibration, fit_temperature
from components.evaluation.scoring import FEWEST_VAL


def measure(task: Task, trained: Trained, linear: Trained) -> tuple[float, dict[str, Any]]:
    """Returns the temperature, fitted on val, and the metrics on test."""
    target, test = task.target, task.target.rows("test")
    logits, labels = trained.logits(task, test), target.labels(test)
    temperature, fitted_on = 1.0, f"nothing: fewer than {FEWEST_VAL} labeled val photos"
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
    if trained.kept is not None:
        metrics |= {"kept_epoch": trained.kept, "epochs": trained.epochs}
    return temperature, {**metrics, "classes": list(target.classes), **target.by_class(logits, labels)}
