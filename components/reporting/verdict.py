"""The first sentences of the page: how good the best backbone is, and what to do next."""

from __future__ import annotations

from typing import Any

from components.reporting.answers import sight
from components.reporting.results import Results
from components.reporting.table import BASELINES


def sentences(results: Results) -> list[str]:
    """Returns the first sentences as plain text: on the backbone, the language model and what to do, if known."""
    known, sees = backbone_sentence(results), sight(results.answering)
    found = [known and known[1], sees and " ".join(sees), next_sentence(results)]
    return [sentence for sentence in found if sentence]


def backbone_sentence(results: Results) -> tuple[bool, str] | None:
    """Returns whether the best backbone is better than every baseline, and how good it is as a sentence.

    None if no backbone was measured. Without labels, True unless it has collapsed.
    """
    if not (best := results.best_method()):
        return None
    metrics = results.methods[best]
    rank, dimensions = metrics["health"]["effective_rank"], metrics["health"]["dimensions"]
    if collapse := results.collapse(best):
        return False, f"{best} has {collapse.partition(';')[0]}."
    if "backbone" not in metrics:
        used = f"The features of {best} use {rank:.0f} of {dimensions} directions"
        return True, f"{used}; accuracy was not measured: {_why(metrics)}."
    own, (baseline, other) = metrics["backbone"]["knn"], _best_baseline(metrics)
    name, side = BASELINES[baseline], _side(results, best, baseline)
    known = f"By the photos most like them, {best} names {100 * own['value']:.0f} % of the test photos right"
    beside = f"{name}: {100 * other['value']:.0f} %"
    if side > 0:
        times = f"{own['value'] / other['value']:.1f} times as many as" if other["value"] else "more than"
        return True, f"{known}, {times} without a trained backbone ({beside})."
    if side < 0:
        return False, f"{known}, fewer than without a trained backbone ({beside})."
    return False, f"{known}, which this data cannot tell from what needs no trained backbone ({beside})."


def next_sentence(results: Results) -> str | None:
    """Returns what to do next, with a command or a setting; None if no backbone was measured."""
    if not (best := results.best_method()):
        return None
    metrics = results.methods[best]
    if results.collapse(best):
        return "Next: train longer or with a lower learning rate, or choose another method (see docs/methods)."
    if "backbone" not in metrics:
        return "Next: sort a few photos into a folder for each class, or name one class for each in labels.csv."
    published = best in results.origins
    if _side(results, best, _best_baseline(metrics)[0]) <= 0 and not published:
        return "Next: start from published weights, which need fewer photos: make run PHOTOS=FOLDER chooses them."
    if published and not results.configs[best]["epochs"]:
        return "Next: let these weights learn from your photos, without labels: make run PHOTOS=FOLDER chooses how."
    return "Next: try it on a photo of your own: make app."


def _side(results: Results, method: str, baseline: str) -> int:
    """Returns 1 if a method is above a baseline in kNN accuracy, -1 if it is below, 0 if this data cannot tell.

    By the same photos where they were compared, otherwise by whether the two intervals overlap.
    """
    if pair := results.comparison("knn", method, baseline):
        return (1 if pair.first == method else -1) if pair.shown else 0
    metrics = results.methods[method]
    own, other = metrics["backbone"]["knn"], metrics[baseline].get("top1") or metrics[baseline]["knn"]
    return int(own["low"] > other["high"]) - int(own["high"] < other["low"])


def _why(metrics: dict[str, Any]) -> str:
    return str(next(iter(metrics.get("not_measured", {}).values()), "there are no labels"))


def _best_baseline(metrics: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Returns the baseline with the best kNN accuracy, and its accuracy."""
    scores = {name: metrics[name].get("top1") or metrics[name]["knn"] for name in BASELINES if name in metrics}
    best = max(scores, key=lambda name: float(scores[name]["value"]))
    return best, scores[best]
