"""The photos of the studies: generated scenes, the same with a lens's color fringes, and parts of CIFAR-10."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.methods import ROOT, stage
from components.data.photos import Photos

FRINGE = 0.03  # by how much red is enlarged and blue reduced from the middle; two pixels at the border of 64
CIFAR_TEST, CIFAR_VAL = 400, 100  # photos of each class, all from CIFAR-10's test split
LOCK = Lock()


def prepared(name: str, folder: Path, cifar: Path | None) -> Path:
    """Returns the prepared photos of a name, which are made at the first call. folder: of all of them.

    name: "scenes"; "fringes", the same with chromatic aberration; "cifar-N", CIFAR-10 with N training photos.
    Raises ValueError for parts of CIFAR-10 without its folder.
    """
    out = folder / name
    scenes = prepared("scenes", folder, cifar) if name == "fringes" else None
    with LOCK:
        if not (out / "prepared" / "manifest.parquet").is_file():
            out.mkdir(parents=True, exist_ok=True)
            params: dict[str, Any] = {"data": {"source": "scenes", "size": 64}, "prepare": {"count": 8000, "seed": 0}}
            if scenes:
                _with_fringes(Photos(scenes), out / "photos")
                params = {"data": {"source": str(out / "photos"), "size": 64}, "prepare": {"near_duplicates": False}}
            elif name.startswith("cifar-"):
                if cifar is None:
                    raise ValueError(f"{name} needs CIFAR-10 as class folders (train/CLASS, test/CLASS); give --cifar")
                _part_of_cifar(cifar, int(name.removeprefix("cifar-")), out / "photos")
                params = {"data": {"source": str(out / "photos"), "size": 32}, "prepare": {"near_duplicates": False}}
            (out / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
            stage("prepare", "--out", out / "prepared", "--downloads", ROOT / "data", cwd=out)
    return out / "prepared"


def _with_fringes(photos: Photos, out: Path) -> None:
    """Writes all photos as PNG files with chromatic aberration: each color has its own magnification."""
    for row, (split, label) in enumerate(photos.manifest.select("split", "label").iter_rows()):
        pixels = photos[row].numpy()
        file = out / split / label / f"{row:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        colors = [magnified(plane, 1 + shift) for plane, shift in zip(pixels, (FRINGE, 0.0, -FRINGE), strict=True)]
        Image.fromarray(np.stack(colors, 2)).save(file, compress_level=1)


def magnified(plane: np.ndarray, factor: float) -> np.ndarray:
    """Returns a color plane, uint8 [H, W], enlarged about its middle, bilinear; border pixels are repeated."""
    height, width = plane.shape
    y, x = (
        ((np.arange(side) - (side - 1) / 2) / factor + (side - 1) / 2).clip(0, side - 1) for side in (height, width)
    )
    top, left = y.astype(int).clip(0, height - 2), x.astype(int).clip(0, width - 2)
    down, right = (y - top)[:, None], (x - left)[None]
    values = plane.astype(float)
    upper = values[top][:, left] * (1 - right) + values[top][:, left + 1] * right
    lower = values[top + 1][:, left] * (1 - right) + values[top + 1][:, left + 1] * right
    return (upper * (1 - down) + lower * down).round().astype(np.uint8)


def _part_of_cifar(cifar: Path, count: int, out: Path) -> None:
    """Links `count` training photos, the first of each class by name, and test and val photos, which all parts
    share."""
    for source in sorted((cifar / "train").iterdir()):
        test = sorted((cifar / "test" / source.name).iterdir())
        parts = {
            "train": sorted(source.iterdir())[: count // 10],
            "test": test[:CIFAR_TEST],
            "val": test[CIFAR_TEST : CIFAR_TEST + CIFAR_VAL],
        }
        for split, files in parts.items():
            folder = out / split / source.name
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                if not (folder / file.name).exists():
                    (folder / file.name).symlink_to(file.resolve())
