"""Measures the features during a run; one that goes on from published weights keeps the best of start and snapshots.

Longer training can make a good backbone worse, and its loss does not tell. The test split is never used here. Measuring
changes nothing of the run: it draws no random numbers and trains nothing.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.augment import View
from components.data.fields import make_batch
from components.data.photos import Photos
from components.evaluation import knn
from components.evaluation.features import center, eval_mode, features
from components.evaluation.health import COLLAPSED, ENOUGH, effective_rank
from components.models.backbone import Backbone, load
from components.precision import uses_bf16

NEIGHBORS = 20
FEWEST_VAL = 5  # labels of val, for a run that trains with those of train
MOST = 4096  # photos classified by the others
WATCHED = 2048  # photos that a run from random weights is measured on
PAIRS = 1024  # photos of which two crops are compared where there are no labels, and of which the rank is computed
CROP = (0.3, 1.0)


@dataclass(frozen=True)
class Quality:
    """How good features are. value: from 0 to 1, and `measured` says what it is.

    effective_rank: see health.py; None for fewer photos than ENOUGH, and if a feature is not finite.
    """

    value: float
    measured: str
    effective_rank: float | None


def measure(
    backbone: Backbone,
    photos: Photos,
    seed: int,
    splits: tuple[str, ...],
    most: int | None = None,
    *,
    by_labels: bool = True,
) -> Quality:
    """Returns how good the features are on the photos of `splits`, or on `most` of them, drawn by the seed.

    With labels, if by_labels: kNN accuracy, each photo classified by the others. Without: the share of photos whose
    random crop is nearer to another random crop of the same photo than to those of the others.
    """
    names, rows = " and ".join(splits), photos.rows(*splits, labeled=True)
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    if by_labels and len(photos.labels(rows).unique()) > 1:
        vectors = features(backbone, photos, "snapshot", rows)
        (bank,) = center(vectors)
        labels, places = (
            photos.labels(rows),
            torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))[:MOST]),
        )
        predicted = knn.classify_leave_one_out(places, bank, labels, min(NEIGHBORS, len(rows) - 1))
        accuracy = float((predicted == labels[places]).float().mean())
        words = f"kNN accuracy on {len(places)} photos of {names}, each classified by the others"
        return Quality(accuracy, words, _rank(vectors[places[:PAIRS]]))
    rows = np.random.default_rng(seed).permutation(photos.rows(*splits))[:PAIRS]
    crops = _crops(backbone, photos, rows, seed)
    first, second = (center(x)[0] for x in crops)
    found = (first @ second.T).argmax(1) == torch.arange(len(rows))
    words = f"{len(rows)} photos of {names}, recognized by another crop of them"
    return Quality(float(found.float().mean()), words, _rank(crops[0]))


def _rank(vectors: Tensor) -> float | None:
    rank = effective_rank(vectors)  # not of centered vectors: of those that are all the same, rounding is left
    return rank if len(vectors) >= ENOUGH and math.isfinite(rank) else None


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

    labels_seen: whether the run trains with the labels of train, which its features then fit better than other photos'.
    It is measured on val alone then, or, where val has fewer than FEWEST_VAL labels, without labels.
    keeps: whether the best backbone is kept; if not, features are only measured, on at most WATCHED photos.
    """

    def __init__(
        self,
        folder: Path,
        photos: Photos,
        seed: int,
        *,
        labels_seen: bool = False,
        keeps: bool = True,
    ) -> None:
        self.folder, self.photos, self.seed, self.keeps = folder, photos, seed, keeps
        self.by_labels = not labels_seen or len(photos.rows("val", labeled=True)) >= FEWEST_VAL
        self.splits = ("val",) if labels_seen and self.by_labels else ("train", "val")
        self.log = folder / "snapshots.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text(encoding="utf-8") if self.log.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    def take(self, step: int, backbone: Backbone) -> None:
        """Measure the backbone after `step` steps, and keep it, if one is kept, where it is better than all before."""
        lines = self.lines()
        if any(line["step"] == step for line in lines):  # before an interruption
            return
        most = None if self.keeps else WATCHED
        with eval_mode(backbone):
            quality = measure(backbone, self.photos, self.seed, self.splits, most, by_labels=self.by_labels)
        if self.keeps and quality.value > max((line["value"] for line in lines), default=-1.0):
            part = self.folder / "best.part"
            shutil.rmtree(part, ignore_errors=True)
            backbone.save(part)
            shutil.rmtree(self.folder / "best", ignore_errors=True)
            part.rename(self.folder / "best")
        lines.append({"step": step, **asdict(quality)})
        self.log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def describe(self) -> list[str]:
        """Returns what was measured as lines for a terminal; also whether the features have collapsed."""
        lines = self.lines()
        if not lines:
            return []
        points = ", ".join(f"{line['value']:.3f} after step {line['step']:,}" for line in lines)
        words, ranks = [f"{lines[0]['measured']}: {points}"], [line["effective_rank"] for line in lines]
        if None in ranks:
            return words
        words[0] += f"; effective rank: {', '.join(f'{rank:.0f}' for rank in ranks)}"
        if ranks[-1] < COLLAPSED:
            what = "collapsed: all photos have nearly the same features"
            words.append(f"{what}; try a lower learning rate, a longer warm-up, or another method")
        return words

    def best(self) -> tuple[Backbone, dict[str, Any]]:
        """Returns the best backbone, and what to write about the choice."""
        lines = self.lines()
        kept = max(lines, key=lambda line: float(line["value"]))  # the first of equals: the earliest
        summary = {"measured": kept["measured"], "start": lines[0]["value"], "kept_step": kept["step"]}
        points = [{"step": line["step"], "value": line["value"]} for line in lines]
        return load(self.folder / "best"), {**summary, "kept": kept["value"], "points": points}
