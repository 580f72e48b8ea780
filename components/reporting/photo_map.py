"""The map of the photos on the report's page: their vectors in two dimensions, each point with a small photo.

The points are drawn by page.js, with plotly's JavaScript, which goes into the page.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.photos import Photos, jpeg
from components.evaluation.embeddings import ROUNDING, Embeddings

POINTS = 2000  # more do not fit a screen, and would make the page too large
LEAST = 3  # two points are always on a line
SIDE = 48  # pixels of a small photo; a multiple of JPEG's blocks of 8, so that neighbors in the sprite do not mix
QUALITY = 80
NAMED = 20  # classes with a color of their own: page.js has ten colors and two symbols


@dataclass(frozen=True)
class PhotoMap:
    """shown: points; total: photos with a vector; shares: of the variance, by direction, None if there is none.

    others: classes without a color of their own; data: what page.js draws; plotly: the JavaScript that it calls.
    """

    shown: int
    total: int
    shares: tuple[float, float] | None
    others: int
    data: dict[str, Any]
    plotly: str


def photo_map(folder: Path, photos: Photos) -> PhotoMap | None:
    """Returns the map of the photos, at most POINTS, evenly chosen. folder: what the stage embed wrote.

    None if embed has not run, or has fewer than LEAST photos. Photos that are not prepared any more are left out.
    """
    try:
        embeddings = Embeddings.read(folder)
    except ValueError:  # embed has not run, or was stopped
        return None
    manifest = photos.manifest.with_row_index("row").select("row", "path", "pixels_sha256", "labels")
    vectors = embeddings.table.with_row_index("vector").select("vector", "pixels_sha256")
    table = manifest.join(vectors, on="pixels_sha256", maintain_order="left")
    chosen = table[np.linspace(0, len(table) - 1, min(POINTS, len(table)), dtype=int)]
    if len(chosen) < LEAST:
        return None
    from plotly.offline import get_plotlyjs

    points, shares = project(embeddings.directions(chosen["vector"].to_numpy(writable=True)))
    classes, names, others = color_groups(chosen["labels"].to_list())
    data = {
        "x": [round(value, 4) for value in points[:, 0].tolist()],
        "y": [round(value, 4) for value in points[:, 1].tolist()],
        "groups": names,
        "group": classes,
        "label": [" · ".join(labels) for labels in chosen["labels"]],
        "path": chosen["path"].to_list(),
        **sprite(photos, chosen["row"].to_numpy()),
    }
    return PhotoMap(len(chosen), len(table), shares, others, data, get_plotlyjs())


def project(vectors: Tensor) -> tuple[Tensor, tuple[float, float] | None]:
    """Returns the principal components of `vectors`, [N, D] -> [N, 2], and the share of the variance of each.

    None in place of the shares if all vectors are the same. The sign of a direction is arbitrary; its largest entry
    is made positive, so that the same vectors are always drawn the same way.
    """
    vectors = vectors.double()
    centered = vectors - vectors.mean(0)
    _, deviations, directions = torch.linalg.svd(centered, full_matrices=False)
    largest = directions[:2].abs().argmax(1, keepdim=True)
    points = centered @ (directions[:2] * directions[:2].gather(1, largest).sign()).T  # [N, 2]
    variances = deviations.square()
    total = float(variances.sum())
    if total <= ROUNDING**2 * float(vectors.square().sum()):
        return points, None
    return points, (float(variances[0]) / total, float(variances[1]) / total)


def color_groups(labels: list[list[str]]) -> tuple[list[int], list[str], int]:
    """Returns the group of each photo, whose points have one color; the groups' names; and how many classes share one.

    Groups are the NAMED most frequent classes, most frequent first, then, where there are such photos, other classes,
    several labels, and no label. labels: of each photo. There are no names if there are no labels.
    """
    counts = Counter(names[0] for names in labels if len(names) == 1)
    classes = [name for name, _ in counts.most_common(NAMED)]
    others = len(counts) - len(classes)
    place = {name: number for number, name in enumerate(classes)}
    rest = [f"{others:,} other class{'es' * (others != 1)}", "several labels", "no label"]
    number_of = [
        place.get(names[0], len(classes)) if len(names) == 1 else len(classes) + (1 if names else 2) for names in labels
    ]
    used = sorted(set(number_of))  # without the kinds of photos that there are not
    names = [[*classes, *rest][number] for number in used]
    return [used.index(number) for number in number_of], names if any(labels) else [], others


def sprite(photos: Photos, rows: np.ndarray) -> dict[str, Any]:
    """Returns all small photos as one JPEG in a data URI, `columns` in a row, each `side` pixels wide and high.

    One file is a third of as many small ones, each of which would have its own tables.
    """
    columns = math.isqrt(len(rows) - 1) + 1
    picture = np.full((-(-len(rows) // columns), columns, SIDE, SIDE, 3), 255, np.uint8)
    place = 0
    for batch in photos.batches(rows, SIDE, "crop"):
        for square in batch:
            picture[place // columns, place % columns] = square.permute(1, 2, 0).numpy()
            place += 1
    joined = picture.swapaxes(1, 2).reshape(-1, columns * SIDE, 3)
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg(joined, QUALITY)).decode()
    return {"sprite": uri, "columns": columns, "side": SIDE}
