"""The measured points of a run, and the best backbone among them. Longer training can make a good backbone worse.

The loss does not tell. The test split is never used here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.data.photos import Photos
from components.evaluation.features import eval_mode
from components.evaluation.health import verdict
from components.evaluation.measured import BEST, LAST, MEASURED, best
from components.evaluation.points import WATCHED, Watched, measure
from components.evaluation.scoring import FEWEST_LABELS
from components.models.backbone import Backbone
from components.training.monitor import Measurement

SHOWN = {  # of a line of measured.jsonl, in words
    "own_crop": ("finds its own crop", ".3f"),
    "effective_rank": ("effective rank", ".0f"),
    "alignment": ("alignment", ".2f"),
    "uniformity": ("uniformity", ".2f"),
    "near_start": ("neighbors shared with the start", ".2f"),
    "near_pixels": ("neighbors shared with pixels", ".2f"),
    "entropy": ("entropy of the targets", ".2f"),
    "kl_divergence": ("divergence from the targets", ".3f"),
}
TARGETS = ("entropy", "kl_divergence", "prototype_usage")  # in the log of methods with a teacher


class Snapshots:
    """The measured points of one run and the best backbone so far, in a folder that outlives interruptions.

    labels_seen: whether the run trains with the labels of train, which its features then fit better than other photos'.
    It is measured on val alone then, or, where val has fewer than FEWEST_LABELS labels, without labels.
    goes_on: whether it started from published weights. If not, kNN accuracy is that of at most WATCHED photos.
    """

    def __init__(
        self, folder: Path, photos: Photos, seed: int, *, labels_seen: bool = False, goes_on: bool = True
    ) -> None:
        by_labels = not labels_seen or len(photos.rows("val", labeled=True)) >= FEWEST_LABELS
        splits = ("val",) if labels_seen and by_labels else ("train", "val")
        self.watched = Watched(photos, seed, splits, None if goes_on else WATCHED, by_labels=by_labels)
        self.goes_on, self.folder = goes_on, folder
        self.log, self.start = folder / "snapshots.jsonl", folder / "start_neighbors.npy"

    def lines(self) -> list[dict[str, Any]]:
        """Returns the points so far: step, the fields of a Point, TARGETS if the method logs them, and a verdict."""
        text = self.log.read_text(encoding="utf-8") if self.log.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    def take(self, step: int, backbone: Backbone, losses: Mapping[str, float]) -> Measurement:
        """Measure the backbone after `step` steps, and keep it where it is better than all before.

        losses: what the method logged of its last batch.
        """
        lines = self.lines()
        if earlier_lines := [line for line in lines if line["step"] == step]:  # before an interruption
            return self._describe(earlier_lines[0])
        start = torch.from_numpy(np.load(self.start, allow_pickle=False)) if step else None
        with eval_mode(backbone):
            point, neighbors = measure(backbone, self.watched, start)
        if not step:
            np.save(self.start, neighbors.numpy())
        targets = {name: losses[name] for name in TARGETS if name in losses}
        words = verdict(point.effective_rank, targets) if step else None  # untrained is not collapsed
        lines.append({"step": step, **asdict(point), **targets, "verdict": words})
        if best(lines)["step"] == step:
            part = self.folder / f"{BEST}.part"
            shutil.rmtree(part, ignore_errors=True)
            backbone.save(part)
            shutil.rmtree(self.folder / BEST, ignore_errors=True)
            part.rename(self.folder / BEST)
        self.log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return self._describe(lines[-1])

    def _describe(self, line: dict[str, Any]) -> Measurement:
        """Returns what was measured at a point, in words and for the progress line."""
        name = "kNN" if self.watched.by_labels else "own crop"
        entries = {name: f"{line['value']:.3f}"}
        words = [f"kNN accuracy {line['value']:.3f}"] if self.watched.by_labels else []
        words += [f"{words} {line[key]:{form}}" for key, (words, form) in SHOWN.items() if line.get(key) is not None]
        if line["effective_rank"] is not None:
            entries["rank"] = f"{line['effective_rank']:.0f}"
        return Measurement("; ".join(words), entries, line["verdict"])

    def write(self, out: Path) -> list[str]:
        """Write the points to out/measured.jsonl. Returns them as lines for a terminal; the last says of a collapse.

        out/backbone is that of the last point. A run from random weights keeps it, and where another point was better,
        that one's too, as out/best. One that goes on keeps the best, the last one as out/last, and writes start.json.
        """
        lines = self.lines()
        (out / MEASURED).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        if not lines:
            return []
        chosen = best(lines)
        if not self.goes_on and chosen["value"] == lines[-1]["value"]:
            chosen = lines[-1]  # no worse than the best: one backbone is enough
        if self.goes_on:
            points = [{"step": line["step"], "value": line["value"]} for line in lines]
            summary = {"measured": chosen["measured"], "start": lines[0]["value"], "kept_step": chosen["step"]}
            summary |= {"kept": chosen["value"], "points": points}
            (out / "start.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        if chosen != lines[-1]:
            if self.goes_on:
                (out / "backbone").rename(out / LAST)
            shutil.copytree(self.folder / BEST, out / ("backbone" if self.goes_on else BEST))
        words = ", ".join(f"{line['value']:.3f} after step {line['step']:,}" for line in lines)
        best_name = "the last" if chosen == lines[-1] else f"that after step {chosen['step']:,}"
        return [f"{lines[0]['measured']}: {words}; the best: {best_name}", *filter(None, [lines[-1]["verdict"]])]
