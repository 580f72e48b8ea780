"""Where the weights of a backbone come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

ORIGIN, TEACHER = "origin.json", "teacher.json"


@dataclass(frozen=True)
class Origin:
    """Published weights that a backbone started from (origin.json beside its own) or learned from (teacher.json)."""

    source: str  # a Hugging Face id, a folder, or the name of a package's model
    model_type: str
    revision: str | None = None
    license: str = "unknown"
    trained_on: str = "unknown"

    def write(self, folder: Path, name: str = ORIGIN) -> None:
        (folder / name).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, name: str = ORIGIN) -> Origin | None:
        """Returns what `write` wrote beside a backbone, None if it started, or learned, from no published weights."""
        file = folder / name
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
