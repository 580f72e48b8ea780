"""Runs the cells of the studies, several at a time, keeps what is finished, and records what a study has used."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.history.cell import Cell
from benchmarks.history.photo_sets import prepared
from benchmarks.methods import ROOT, overlaid

Result = dict[str, Any]


@dataclass(frozen=True)
class Runner:
    """scale: of all epochs; seeds: how many; cifar: CIFAR-10 as class folders, or None.

    recorded: results by the cell's key, which are used in place of runs; used: those of the cells measured so far.
    """

    out: Path
    scale: float = 1.0
    seeds: int = 3
    jobs: int = 2
    cifar: Path | None = None
    recorded: dict[str, Result] = field(default_factory=dict)
    used: dict[str, Result] = field(default_factory=dict)

    def cell(
        self,
        method: str,
        own: dict[str, Any] | None = None,
        common: dict[str, Any] | None = None,
        *,
        photos: str = "scenes",
        seed: int = 0,
        points: int = 0,
    ) -> Cell:
        """Returns a run with the settings of params.yaml but those of `own` (the method's section) and `common`.

        own["epochs"] is multiplied by the scale.
        """
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["pretrain"]
        sections = {
            "common": {**overlaid(params["common"], common or {}), "seed": seed},
            method: overlaid(params.get(method, {}), own or {}),
        }
        epochs = sections[method].setdefault("epochs", sections["common"]["epochs"])
        sections[method]["epochs"] = max(1, round(epochs * self.scale)) if epochs else 0
        return Cell(photos, method, sections, points)

    def measure(self, cells: list[Cell]) -> list[Result]:
        """Returns the results of the cells in order; runs those that are neither finished nor recorded."""
        with ThreadPoolExecutor(self.jobs) as pool:  # threads that only wait for processes
            results = list(pool.map(lambda cell: self.recorded.get(key(cell)) or self._run(cell), cells))
        self.used.update(zip(map(key, cells), results, strict=True))
        return results

    def photos(self, cell: Cell) -> Path:
        """Returns the folder of the cell's prepared photos, which are made at the first call."""
        return prepared(cell.photos, self.out / "data", self.cifar)

    def backbone(self, cell: Cell) -> Path:
        """Returns the folder of the trained backbone; trains it if its result is only recorded."""
        self._run(cell)
        return self.out / "cells" / key(cell) / "backbone"

    def _run(self, cell: Cell) -> Result:
        folder, data = self.out / "cells" / key(cell), self.photos(cell)
        result = folder / "result.json"
        if not result.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cell.json").write_text(json.dumps(asdict(cell), indent=1) + "\n", encoding="utf-8")
            threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
            env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
            with (folder / "output.txt").open("a", encoding="utf-8") as output:
                command = [sys.executable, "-m", "benchmarks.history.cell", str(folder), str(data)]
                done = subprocess.run(command, cwd=ROOT, env=env, stdout=output, stderr=output, check=False)
            if done.returncode:
                tail = (folder / "output.txt").read_text(encoding="utf-8")[-2000:]
                raise RuntimeError(f"{folder} failed:\n{tail}")
            print(f"finished: {folder.name}", flush=True)
        return dict(json.loads(result.read_text(encoding="utf-8")))


def key(cell: Cell) -> str:
    """Returns a name that other settings, photos or points would change."""
    return f"{cell.method}-{hashlib.sha256(json.dumps(asdict(cell), sort_keys=True).encode()).hexdigest()[:12]}"
