"""Measures a classifier on val after each epoch, and keeps the best: longer training can make it worse.

The folder outlives interruptions of the run, which then ends in the same choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from components.evaluation.features import eval_mode


class BestEpoch:
    """quality: measures the classifier on val, by two numbers (see `Target.quality`).

    The best epoch has the highest first number and, among epochs that are equal in it, the lowest second one.
    """

    def __init__(self, folder: Path, objective: nn.Module, quality: Callable[[], dict[str, float]]) -> None:
        self.folder, self.objective, self.quality = folder, objective, quality
        self.log, self.file = folder / "epochs.jsonl", folder / "best.safetensors"

    def epochs(self) -> list[dict[str, Any]]:
        """Returns epoch and quality of all that were measured."""
        text = self.log.read_text(encoding="utf-8") if self.log.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    def take(self, epoch: int) -> None:
        """Measure the classifier after `epoch` epochs, and keep its weights if it is better than all before."""
        lines = self.epochs()
        if any(line["epoch"] == epoch for line in lines):  # before an interruption
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with eval_mode(self.objective):
            point = {"epoch": epoch, **self.quality()}
        if not lines or _rank(point) > max(map(_rank, lines)):
            part = self.file.with_suffix(".part")
            state = self.objective.state_dict()
            save_file({name: value.detach().clone().contiguous().cpu() for name, value in state.items()}, part)
            part.rename(self.file)
        part = self.log.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in [*lines, point]), encoding="utf-8")
        part.rename(self.log)

    def restore(self) -> int:
        """Gives the objective the best weights. Returns after how many epochs it had them."""
        self.objective.load_state_dict(load_file(self.file))
        return int(max(self.epochs(), key=_rank)["epoch"])  # the first of equals: the earliest


def _rank(line: dict[str, Any]) -> tuple[float, float]:
    _, high, low = line.values()
    return high, -low
