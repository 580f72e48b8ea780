"""Measures the snapshot beside the backbone that a run has kept: the best of its points, or the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from components.data.photos import Photos
from components.evaluation.features import features
from components.evaluation.measured import BEST, LAST, MEASURED, best
from components.evaluation.seeds import measure_seed
from components.models.backbone import load


def measure_other_snapshot(folder: Path, photos: Photos, test: np.ndarray, k: int, seed: int) -> dict[str, Any] | None:
    """Returns what is measured of every seed, and name, step and what it was chosen by; None if there is none.

    A run from random weights keeps its last point, and beside it the best one; a run that went on from published
    weights the other way round. Test photos had no part in the choice.
    """
    name = next((name for name in (BEST, LAST) if (folder / name).is_dir()), None)
    if name is None:
        return None
    lines = [json.loads(line) for line in (folder / MEASURED).read_text(encoding="utf-8").splitlines()]
    step = (best(lines) if name == BEST else lines[-1])["step"]
    metrics, _ = measure_seed(features(load(folder / name), photos, f"{name} snapshot"), photos, test, k, seed)
    return {"name": f"{name} snapshot", "step": step, "chosen_by": lines[0]["measured"], **metrics}
