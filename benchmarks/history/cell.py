"""One run of a study: trains a backbone with one method and measures it, in a process of its own.

    python -m benchmarks.history.cell FOLDER PREPARED

FOLDER/cell.json says what is run on the photos in PREPARED; FOLDER/result.json is written last. An interrupted run goes
on from its last state.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.photos import Photos
from components.evaluation.features import eval_mode, features
from components.evaluation.scoring import baselines, score, selection_score
from components.machine import keep_memory
from components.methods import Method
from components.methods.dino import DINO
from components.methods.simclr import SimCLR
from components.stages.pretrain import setup, untrained
from components.stages.pretrain_config import configure_for
from components.training.loop import accelerator, fit
from components.training.monitor import Run

NEIGHBORS = 20
LOGGED = 40
MACHINES = ("lr", "images_per_second", "data_wait", "seconds_left", "memory_gib")  # in the log, but not the method's


@dataclass(frozen=True)
class Cell:
    """photos: a name of photo_sets.py; pretrain: the sections common and METHOD of params.yaml.

    points: how many times accuracy on val is measured during training, at equal distances.
    epochs: of the section common; 0: the backbone is measured as it starts, beside the most frequent class and pixels.
    """

    photos: str
    method: str
    pretrain: dict[str, Any]
    points: int = 0


def epochs(cell: Cell) -> int:
    return int(cell.pretrain[cell.method]["epochs"])


def run(cell: Cell, data: Path, folder: Path) -> dict[str, Any]:
    """Trains and measures. Returns accuracies on test, on val at the end and at each point, and what it took.

    Beside what the method keeps, DINO's "student" is measured, and what SimCLR's "head" makes of the features.
    """
    photos, acc = Photos(data), accelerator()
    config = configure_for(cell.method, cell.pretrain, photos)
    if not config.epochs:
        backbone = untrained(config, data)
        scores = score(features(backbone, photos), photos, NEIGHBORS)
        return {"pictures": 0, "test": _two(scores), **_floor(photos, backbone, config.seed)}
    ready = setup(config, data, acc)
    steps = config.epochs * ready.per_epoch
    points = Points(folder / "points.jsonl", ready.method, photos)
    every = {round(steps * k / cell.points) for k in range(1, cell.points + 1)}
    length: dict[str, Any] = {"steps": steps, "per_epoch": ready.per_epoch, "batch_size": config.batch_size}
    plan = Run(cell.method, **length, log=folder / "log.jsonl", state=folder / "state", seed=config.seed)
    plan = replace(plan, measured=tuple(sorted(every)), measure=lambda step, _: points.take(step))
    seconds, started = folder / "cpu_seconds.txt", time.process_time()
    before = float(seconds.read_text(encoding="utf-8")) if seconds.is_file() else 0.0
    try:
        fit(ready.method, ready.load, ready.optimizer, config.settings.optimizer, plan, acc)
    finally:
        spent = before + time.process_time() - started - points.seconds
        seconds.write_text(str(spent), encoding="utf-8")
    vectors = outputs(ready.method, photos)
    ready.method.keep().save(folder / "backbone")
    return {
        "pictures": steps * config.batch_size,
        "cpu_seconds": spent,
        "test": _two(score(vectors["kept"], photos, NEIGHBORS)),
        "val": {name: selection_score(x, photos, NEIGHBORS, 0)["knn"] for name, x in vectors.items()},
        "others": {name: _two(score(x, photos, NEIGHBORS)) for name, x in vectors.items() if name != "kept"},
        "points": [{**line, "pictures": line["step"] * config.batch_size} for line in points.lines()],
        "log": _thinned(folder / "log.jsonl"),
    }


def outputs(method: Method, photos: Photos, rows: np.ndarray | None = None) -> dict[str, Tensor]:
    """Returns the features of photos, or of some rows of them, by what is measured of a method: [rows, D] each."""
    found = {"kept": features(method.keep(), photos, "features", rows)}
    if isinstance(method, DINO):
        found["student"] = features(method.student[0], photos, "student", rows)
    if isinstance(method, SimCLR):
        with torch.no_grad():
            device = next(method.parameters()).device
            found["head"] = method.projector.eval()(found["kept"].to(device)).cpu()
    return found


class Points:
    """Accuracies on val during training, kept in a file that outlives interruptions. seconds: that measuring took."""

    def __init__(self, file: Path, method: Method, photos: Photos) -> None:
        self.file, self.method, self.photos, self.seconds = file, method, photos, 0.0

    def lines(self) -> Iterator[dict[str, Any]]:
        text = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        return map(json.loads, text.splitlines())

    def take(self, step: int) -> None:
        if any(line["step"] == step for line in self.lines()):
            return
        started = time.process_time()
        rows, values = self.photos.rows("train", "val"), {}
        with eval_mode(self.method):
            measured = outputs(self.method, self.photos, rows)
        for name, some in measured.items():
            vectors = some.new_zeros(len(self.photos), some.shape[1])
            vectors[rows] = some
            values[name] = selection_score(vectors, self.photos, NEIGHBORS, 0)["knn"]["value"]
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.seconds += time.process_time() - started


def _floor(photos: Photos, backbone: Any, seed: int) -> dict[str, Any]:
    scores, _ = baselines(photos, backbone, NEIGHBORS, seed)
    return {"majority": scores["majority"]["top1"], "pixels": _two(scores["pixels"])}


def _two(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: scores[name] for name in ("knn", "linear")}


def _thinned(log: Path) -> list[dict[str, float]]:
    """Returns about LOGGED lines of the log, the last ones among them; only what a method logs, and the step."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    kept = [*lines[: -3 : max(1, len(lines) // LOGGED)], *lines[-3:]]
    return [{name: value for name, value in line.items() if name not in MACHINES} for line in kept]


def main() -> None:
    folder, data = map(Path, sys.argv[1:])
    keep_memory()
    result = run(Cell(**json.loads((folder / "cell.json").read_text(encoding="utf-8"))), data, folder)
    part = folder / "result.part"
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.rename(folder / "result.json")


if __name__ == "__main__":
    main()
