"""Where the weights of a backbone come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "origin.json"


@dataclass(frozen=True)
class Origin:
    """The published weights that a backbone started from: in origin.json beside its weights, and in the report."""

    source: str  # a Hugging Face id, a folder, or the name of a package's model
    model_type: str
    revision: str | None = None
    license: str = "unknown"
    trained_on: str = "unknown"

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Origin | None:
        """Returns the origin of the backbone in this folder, None if it started from random weights."""
        file = folder / FILE
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
