"""Measures a classifier on val after each epoch, and keeps the best: longer training can make it worse.

The folder outlives interruptions of the run, which then ends in the same choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class BestEpoch:
    """logits: of the val photos now, float32 [N, C]; labels: their classes, int64 [N]. Both on the CPU."""

    def __init__(self, folder: Path, objective: nn.Module, logits: Callable[[], Tensor], labels: Tensor) -> None:
        self.folder, self.objective, self.logits, self.labels = folder, objective, logits, labels
        self.log, self.file = folder / "epochs.jsonl", folder / "best.safetensors"

    def epochs(self) -> list[dict[str, Any]]:
        """Returns epoch, accuracy and cross_entropy of all that were measured."""
        text = self.log.read_text(encoding="utf-8") if self.log.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    def take(self, epoch: int) -> None:
        """Measure the classifier after `epoch` epochs, and keep its weights if it is better than all before."""
        lines = self.epochs()
        if any(line["epoch"] == epoch for line in lines):  # before an interruption
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        training = {module: module.training for module in self.objective.modules()}
        self.objective.eval()
        logits = self.logits()
        for module, mode in training.items():
            module.training = mode
        right = float((logits.argmax(1) == self.labels).float().mean())
        new = {"epoch": epoch, "accuracy": right, "cross_entropy": float(cross_entropy(logits, self.labels))}
        if not lines or _rank(new) > max(map(_rank, lines)):
            part = self.file.with_suffix(".part")
            state = self.objective.state_dict()
            save_file({name: value.detach().clone().contiguous().cpu() for name, value in state.items()}, part)
            part.rename(self.file)
        part = self.log.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in [*lines, new]), encoding="utf-8")
        part.rename(self.log)

    def restore(self) -> int:
        """Gives the objective the best weights. Returns after how many epochs it had them."""
        self.objective.load_state_dict(load_file(self.file))
        return int(max(self.epochs(), key=_rank)["epoch"])  # the first of equals: the earliest


def _rank(line: dict[str, Any]) -> tuple[float, float]:
    return line["accuracy"], -line["cross_entropy"]
