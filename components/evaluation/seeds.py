"""What several seeds of a method measure: their mean, and by how much they differ."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.data.photos import Photos
from components.evaluation.health import ENOUGH, effective_rank, feature_std, verdict
from components.evaluation.scoring import Correct, cannot_score, judge, selection_score

CORRECT = "correct.safetensors"


def measure_seed(
    vectors: Tensor, photos: Photos, test: np.ndarray, k: int, seed: int
) -> tuple[dict[str, Any], Correct]:
    """Returns what is measured of every seed, and which of the labeled test photos are right: nothing without labels.

    vectors: features of all photos [N, D]. test: rows, of which 4,096 drawn by `seed` are used for the health.
    """
    sample = vectors[np.random.default_rng(seed).permutation(test)[:4096]]  # shuffled: rows are in class order
    rank = effective_rank(sample)
    health = {
        "effective_rank": rank,
        "verdict": verdict(rank if len(sample) >= ENOUGH else None, {}),
        "feature_std": feature_std(sample),
        "dimensions": vectors.shape[1],
        "photos": len(sample),
    }
    if cannot_score(photos):
        return {"health": health}, {}
    scores, correct = judge(vectors, photos, k)
    return {"health": health, "backbone": scores, "selection": selection_score(vectors, photos, k, seed)}, correct


def over_seeds(metrics_by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Returns how seeds are written to metrics.json: count, the values of each, and of each value mean and deviation.

    deviation: the standard deviation, None for one seed.
    """
    lines = [{"seed": seed, **_values(metrics)} for seed, metrics in metrics_by_seed.items()]
    summary = {}
    for name in lines[0].keys() - {"seed"}:
        values = [line[name] for line in lines]
        summary[name] = {"mean": mean(values), "deviation": stdev(values) if len(values) > 1 else None}
    return {"count": len(lines), "each": lines, **dict(sorted(summary.items()))}


def _values(metrics: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers that seeds are compared by: accuracies on test and on the photos for selection, the rank."""
    values = {kind: scores["value"] for kind, scores in metrics.get("backbone", {}).items() if "value" in scores}
    if "selection" in metrics:
        values["selection"] = metrics["selection"]["knn"]["value"]
    return {**values, "effective_rank": metrics["health"]["effective_rank"]}


def write_correct(correct: dict[str, list[Correct]], rows: Tensor, file: Path) -> None:
    """Write which test photos are predicted right.

    correct: of the backbone and of baselines, for each seed. rows: int64 [N], the photos' rows in the manifest.
    """
    tensors = {"rows": rows}
    for name, seeds in correct.items():
        tensors |= {f"{name}.{kind}": torch.stack([by_kind[kind] for by_kind in seeds]) for kind in seeds[0]}
    save_file(tensors, file)


def read_correct(file: Path) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Returns the rows, int64 [N], and by name and kind which of them each seed predicts right, bool [S, N]."""
    tensors = load_file(file)
    rows = tensors.pop("rows")
    correct: dict[str, dict[str, Tensor]] = {}
    for key, values in tensors.items():
        name, _, kind = key.partition(".")
        correct.setdefault(name, {})[kind] = values
    return rows, correct
