"""Measures the features of a run that goes on from published weights, and keeps the best: the start's or a snapshot's.

Longer training can make a good backbone worse, and its loss does not tell. The test split is never used here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.augment import View
from components.data.fields import make_batch
from components.data.photos import Photos
from components.evaluation import knn
from components.evaluation.features import center, features
from components.models.backbone import Backbone, load
from components.precision import uses_bf16

NEIGHBORS = 20
MOST = 4096  # photos classified by the others
PAIRS = 1024  # photos of which two crops are compared where there are no labels
CROP = (0.3, 1.0)


def measure(backbone: Backbone, photos: Photos, seed: int, splits: tuple[str, ...]) -> tuple[float, str]:
    """Returns how good the features are, from 0 to 1, and what was measured, on the photos of `splits`.

    With labels: kNN accuracy, each photo classified by the others. Without: the share of photos whose random crop is
    nearer to another random crop of the same photo than to those of the others.
    """
    names, rows = " and ".join(splits), photos.rows(*splits, labeled=True)
    if len(photos.labels(rows).unique()) > 1:
        (bank,) = center(features(backbone, photos, "snapshot", rows))
        labels, places = (
            photos.labels(rows),
            torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))[:MOST]),
        )
        predicted = knn.classify_leave_one_out(places, bank, labels, min(NEIGHBORS, len(rows) - 1))
        accuracy = float((predicted == labels[places]).float().mean())
        return accuracy, f"kNN accuracy on {len(places)} photos of {names}, each classified by the others"
    rows = np.random.default_rng(seed).permutation(photos.rows(*splits))[:PAIRS]
    first, second = (center(x)[0] for x in _crops(backbone, photos, rows, seed))
    found = (first @ second.T).argmax(1) == torch.arange(len(rows))
    return float(found.float().mean()), f"{len(rows)} photos of {names}, recognized by another crop of them"


@torch.no_grad()
def _crops(backbone: Backbone, photos: Photos, rows: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the features of two random crops of each photo: float32 [len(rows), D] each."""
    device = next(backbone.parameters()).device
    view = View(backbone.config.image_size, crop=CROP)
    parts = []
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16()):
        for some in np.array_split(rows, max(1, len(rows) // 128)):
            pixels = make_batch(photos, some, (view, view), seed, 0, device)
            parts.append([backbone(crop).float().cpu() for crop in pixels])
    first, second = (torch.cat(crops) for crops in zip(*parts, strict=True))
    return first, second


class Snapshots:
    """The measured points of one run, in a folder that outlives its interruptions.

    splits: without train, if the run trains with its labels, which its features then fit better than other photos'.
    """

    def __init__(self, folder: Path, photos: Photos, seed: int, splits: tuple[str, ...] = ("train", "val")) -> None:
        self.folder, self.photos, self.seed, self.splits = folder, photos, seed, splits
        self.log = folder / "snapshots.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text(encoding="utf-8") if self.log.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    def take(self, step: int, backbone: Backbone) -> None:
        """Measure the backbone after `step` steps, and keep it if it is better than all before."""
        lines = self.lines()
        if any(line["step"] == step for line in lines):  # before an interruption
            return
        modes = {name: module.training for name, module in backbone.named_modules()}
        value, measured = measure(backbone.eval(), self.photos, self.seed, self.splits)
        for name, module in backbone.named_modules():
            module.training = modes[name]
        if value > max((line["value"] for line in lines), default=-1.0):
            part = self.folder / "best.part"
            shutil.rmtree(part, ignore_errors=True)
            backbone.save(part)
            shutil.rmtree(self.folder / "best", ignore_errors=True)
            part.rename(self.folder / "best")
        lines.append({"step": step, "value": value, "measured": measured})
        self.log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def best(self) -> tuple[Backbone, dict[str, Any]]:
        """Returns the best backbone, and what to write about the choice."""
        lines = self.lines()
        kept = max(lines, key=lambda line: float(line["value"]))  # the first of equals: the earliest
        summary = {"measured": kept["measured"], "start": lines[0]["value"], "kept_step": kept["step"]}
        points = [{"step": line["step"], "value": line["value"]} for line in lines]
        return load(self.folder / "best"), {**summary, "kept": kept["value"], "points": points}
