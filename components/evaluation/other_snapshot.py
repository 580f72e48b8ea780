"""Measures the snapshot beside the backbone that a run has kept: the best of its points, or the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from components.data.photos import Photos
from components.evaluation.features import features
from components.evaluation.measured import BEST, LAST, MEASURED, best
from components.evaluation.seeds import measure_seed, over_seeds
from components.models.backbone import load


def measure_other_snapshot(
    folders: dict[int, Path],
    kept_metrics: dict[int, dict[str, Any]],
    photos: Photos,
    test: np.ndarray,
    k: int,
    seed: int,
) -> dict[str, Any] | None:
    """Returns the metrics of the other snapshot of a method, None if no seed has one.

    A run from random weights keeps its last point, and beside it the best one; a run that went on from published
    weights does the reverse. Test photos have no part in the choice. A seed whose best point is its last one has no
    other snapshot, and counts with what it has kept.

    folders: of the seeds, the first one first. kept_metrics: by seed, `measure_seed` of the backbone that was kept.
    Returned are name, chosen_by, and seeds (see `over_seeds`); of the first seed also step and `measure_seed`.
    """
    names = {
        number: next((name for name in (BEST, LAST) if (folder / name).is_dir()), None)
        for number, folder in folders.items()
    }
    name = next(filter(None, names.values()), None)
    if name is None:
        return None
    metrics = {}
    for number, folder in folders.items():
        metrics[number] = kept_metrics[number]
        if names[number]:
            vectors = features(load(folder / name), photos, f"{name} snapshot")
            metrics[number], _ = measure_seed(vectors, photos, test, k, seed)
    first = next(iter(folders))
    lines = [json.loads(line) for line in (folders[first] / MEASURED).read_text(encoding="utf-8").splitlines()]
    step = (best(lines) if name == BEST else lines[-1])["step"]
    of_first = {"step": step, "chosen_by": lines[0]["measured"], **metrics[first]}
    return {"name": f"{name} snapshot", **of_first, "seeds": over_seeds(metrics)}
