"""What a person should know of the pictures that were offered, and of those that are used."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl
import psutil


def summarize(offered: pl.DataFrame, manifest: pl.DataFrame) -> dict[str, Any]:
    """offered: kind of rejection, if any; manifest: data.checks.Manifest. Counts, and sides before packing."""
    notes = Counter(note for said in manifest["notes"] for note in said.split("; ") if note)
    counts = manifest.group_by("label", "split").len().sort("label", "split")
    classes: dict[str, dict[str, int]] = {}
    for label, split, count in counts.drop_nulls("label").iter_rows():
        classes.setdefault(label, {})[split] = count
    return {
        "offered": len(offered),
        "used": len(manifest),
        "rejected": dict(Counter(offered["kind"].drop_nulls()).most_common()),
        "splits": dict(Counter(manifest["split"]).most_common()),
        "classes": classes,
        "unlabeled": manifest["label"].null_count(),
        "captioned": len(manifest) - manifest["caption"].null_count(),
        "converted": dict(notes.most_common()),
        "width": _spread(manifest["width"]),
        "height": _spread(manifest["height"]),
    }


def counted(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def too_large(packed: int, quality: int | None) -> list[str]:
    """A warning where not all that is packed can stay in memory, so that every epoch reads it again."""
    memory = psutil.virtual_memory().total
    if packed < memory / 2:
        return []
    advice = "a smaller data.size" if quality else "data.jpeg_quality, 95 say, or a smaller data.size"
    said = f"packed pictures take {packed / 2**30:.0f} GiB, memory has {memory / 2**30:.0f}"
    return [f"{said}: every epoch will read the disk; try {advice}"]


def _spread(column: pl.Series) -> dict[str, int | None]:
    quantiles = {"min": 0.0, "median": 0.5, "max": 1.0}
    found = {name: column.quantile(q, "nearest") for name, q in quantiles.items()}
    return {name: None if value is None else int(value) for name, value in found.items()}
