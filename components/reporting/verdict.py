"""The first sentences of the page: how good the best backbone is, and what to do next."""

from __future__ import annotations

from typing import Any

from components.reporting.answers import sight
from components.reporting.results import Results
from components.reporting.table import BASELINES


def sentences(results: Results) -> list[str]:
    """Returns the first sentences as plain text: on the backbone, the language model and what to do, if known."""
    backbone, model = backbone_sentence(results), sight(results.answering)
    all_sentences = [backbone and backbone[1], model and " ".join(model), next_sentence(results)]
    return [sentence for sentence in all_sentences if sentence]


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
        return True, f"{used}. Accuracy was not measured: {_why(metrics)}."
    knn, (baseline, reference) = metrics["backbone"]["knn"], _best_baseline(metrics)
    side = _side(results, best, baseline)
    recognized = f"{best} recognizes {100 * knn['value']:.0f} % of the test photos by their nearest neighbors"
    beside = f"({BASELINES[baseline]}: {100 * reference['value']:.0f} %)"
    if side > 0:
        times = f"{knn['value'] / reference['value']:.1f} times as many as" if reference["value"] else "more than"
        return True, f"{recognized}, {times} the best baseline {beside}."
    if side < 0:
        return False, f"{recognized}, fewer than the best baseline {beside}."
    return False, f"{recognized}. This data cannot show that it is better than the best baseline {beside}."


def next_sentence(results: Results) -> str | None:
    """Returns what to do next, with a command or a setting; None if no backbone was measured."""
    if not (best := results.best_method()):
        return None
    metrics = results.methods[best]
    if results.collapse(best):
        return "Next: train longer, lower the learning rate, or choose another method (see docs/methods)."
    if "backbone" not in metrics:
        return "Next: sort some photos into one folder per class, or write their classes into labels.csv."
    published = best in results.origins
    if _side(results, best, _best_baseline(metrics)[0]) <= 0 and not published:
        return "Next: start from published weights, which need fewer photos. make run PHOTOS=FOLDER chooses them."
    if published and not results.configs[best]["epochs"]:
        return "Next: train these weights further on your photos, without labels. make run PHOTOS=FOLDER chooses how."
    return "Next: try it on a photo of your own: make app."


def _side(results: Results, method: str, baseline: str) -> int:
    """Returns 1 if a method is above a baseline in kNN accuracy, -1 if it is below, 0 if this data cannot tell.

    By the same photos where they were compared, otherwise by whether the two intervals overlap.
    """
    if pair := results.comparison("knn", method, baseline):
        return (1 if pair.first == method else -1) if pair.shown else 0
    metrics = results.methods[method]
    knn, reference = metrics["backbone"]["knn"], metrics[baseline].get("top1") or metrics[baseline]["knn"]
    return int(knn["low"] > reference["high"]) - int(knn["high"] < reference["low"])


def _why(metrics: dict[str, Any]) -> str:
    return str(next(iter(metrics.get("not_measured", {}).values()), "there are no labels"))


def _best_baseline(metrics: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Returns the baseline with the best kNN accuracy, and its accuracy."""
    scores = {name: metrics[name].get("top1") or metrics[name]["knn"] for name in BASELINES if name in metrics}
    best = max(scores, key=lambda name: float(scores[name]["value"]))
    return best, scores[best]
