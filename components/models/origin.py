"""Where the weights of a backbone come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import ModelCard, hf_hub_download
from yaml import YAMLError

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
    def of(cls, source: str, location: str, model_type: str, revision: str | None) -> Origin:
        """Returns what the card of a published model says, or for a folder that selfsight wrote, its origin.json.

        location: the local folder, or the Hugging Face id.
        """
        folder = Path(location)
        if cls.read(folder):
            return cls.of_folder(source, model_type)
        if folder.is_dir() and not (folder / "README.md").is_file():
            return cls(source, model_type, revision)
        try:
            card = (
                folder / "README.md" if folder.is_dir() else hf_hub_download(location, "README.md", revision=revision)
            )
            data = ModelCard.load(card).data
        except (OSError, ValueError, YAMLError):  # no card, or one that cannot be parsed
            return cls(source, model_type, revision)
        datasets = data.get("datasets") or "unknown"
        datasets = datasets if isinstance(datasets, str) else ", ".join(map(str, datasets))
        return cls(source, model_type, revision, data.get("license") or "unknown", datasets)

    @classmethod
    def of_folder(cls, source: str, model_type: str) -> Origin:
        """Returns the origin of weights in the local folder `source`, with the weights that they were trained from."""
        origin = cls.read(Path(source).expanduser())
        if origin is None:
            return cls(source, model_type)
        return cls(source, model_type, None, origin.license, f"{origin.trained_on} ({origin.source}), maybe more since")

    @classmethod
    def read(cls, folder: Path, name: str = ORIGIN) -> Origin | None:
        """Returns what `write` wrote beside a backbone, None if it started, or learned, from no published weights."""
        file = folder / name
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
