"""Where the backbones of several seeds lie: the first one's in the method's folder, the others' in folders below it."""

from __future__ import annotations

import json
from pathlib import Path

SEEDS = "seeds"


def seed_folder(folder: Path, seed: int, first: int) -> Path:
    """Returns the folder of a seed; `folder` is the method's, and that of its first seed."""
    return folder if seed == first else folder / SEEDS / str(seed)


def seed_folders(folder: Path) -> dict[int, Path]:
    """Returns the folders of all seeds of a method that were trained, by seed, the first one first."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    other_seeds = sorted(int(path.name) for path in (folder / SEEDS).glob("*") if path.name.isdecimal())
    first = int(config.get("seed", 0))
    return {seed: seed_folder(folder, seed, first) for seed in (first, *other_seeds)}
