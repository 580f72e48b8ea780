"""Shows in the Prefect UI, under Artifacts, how far a stage's training is, and the measures of its features so far.

Both are read from the lines that the stage prints: its progress bar, and the points where it is measured.
"""

import re
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact

import flows.environment  # noqa: F401  # isort: split


class TrainingProgress:
    """Reads the output of `dvc repro` line by line, which may run several stages.

    warn: called with a message if the server does not answer. Training goes on then, and later lines are read.
    """

    def __init__(self, warn: Callable[[str], object]) -> None:
        self.warn = warn
        self._begin("")

    def read(self, line: str) -> None:
        """Create or update the artifacts if this line says how far training is, or what was measured."""
        if stage_line := re.match(r"Running stage '([^']+)':", line):
            self._begin(stage_line[1])
        if not self.stage:
            return
        name = re.escape(self.stage.rpartition("@")[2])  # the method, or the stage, as `adapt linear` and `connect`
        if bar := re.match(rf"{name}[^:|]*:\s+(\d+)%\|", line):
            self._publish(lambda: self._show_progress(float(bar[1])))
        elif seed := re.match(rf"{name}: seed (\d+) of \d+ seeds", line):
            self.seed = {"seed": seed[1]}
        elif point := re.match(rf"{name}: (\d+ %) of the run, step ([\d,]+): (.+)", line):
            self._add_row(*point.groups())
            self._publish(self._show_table)

    def _begin(self, stage: str) -> None:
        self.stage = stage
        self.key = re.sub("[^a-z0-9]+", "-", stage.lower())  # pretrain-simclr: what Prefect allows
        self.artifact: UUID | None = None
        self.seed = dict[str, str]()
        self.rows: list[dict[str, Any]] = []

    def _add_row(self, percent: str, step: str, words: str) -> None:
        """Add a measured point, or say of the last one that the run has collapsed."""
        if words.startswith("collapsed: ") and self.rows:
            self.rows[-1]["verdict"] = words
            return
        measures = dict(part.rsplit(" ", 1) for part in words.split("; ") if " " in part)
        self.rows.append({**self.seed, "of the run": percent, "step": step, "verdict": "", **measures})

    def _show_progress(self, percent: float) -> None:
        if self.artifact is None:
            created = create_progress_artifact(percent, self.key, f"{self.stage}: how far it is")
            self.artifact = cast(UUID, created)  # a coroutine in asynchronous code only
        else:
            update_progress_artifact(self.artifact, percent)

    def _show_table(self) -> None:
        columns = dict.fromkeys(name for row in self.rows for name in row)  # the start has no targets yet
        rows = [{name: row.get(name, "") for name in columns} for row in self.rows]
        create_table_artifact(rows, f"{self.key}-features", f"{self.stage}: what its features are worth")

    def _publish(self, publish: Callable[[], None]) -> None:
        try:
            publish()
        except httpx.HTTPError as error:  # the server may be restarting
            self.warn(f"The Prefect UI does not show the progress of {self.stage}: {error}")
