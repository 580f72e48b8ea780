"""The table of what each backbone keeps of generated photos."""

from __future__ import annotations

from typing import Any

from components.reporting.results import Results
from components.reporting.table import BASELINES, distinct

COLUMNS = {
    "kind": "kind",
    "number": "number",
    "colors": "colors",
    "place": "place",
    "ground": "ground",
    "miou": "mIoU",
    "corloc": "CorLoc",
}


def columns_of(metrics: dict[str, Any], of: str) -> dict[str, dict[str, Any]]:
    """Returns the scores of one backbone or baseline by column, {} where they were not measured."""
    kept, dense = (metrics.get(name, {}).get(of, {}) for name in ("kept", "dense"))  # or "not_measured" alone
    scores = {**kept, "miou": dense.get("linear"), "corloc": dense.get("corloc")}
    return {name: scores[name] for name in COLUMNS if scores.get(name)}


def kept_table(results: Results) -> dict[str, Any] | None:
    """Returns titles, and rows of name, words, base and cells, None if no backbone was measured.

    A cell has value, low and high, share (how far it is from chance, 0, to all, 1) and best: True if it is the highest
    of all methods. Chance of mIoU is 0; that of CorLoc is the best fixed box.
    """
    measured = {name: metrics for name, metrics in results.methods.items() if columns_of(metrics, "backbone")}
    if not measured:
        return None
    first = next(iter(measured.values()))
    pixels = columns_of(first, "pixels")
    chance = {name: scores.get("chance", 0.0) for name, scores in pixels.items()}
    chance["corloc"] = first["dense"]["pixels"]["fixed_box"]["value"]
    floor = [{"value": chance[name], "best": False} if name in chance and name != "miou" else None for name in COLUMNS]
    rows = [{"name": "chance", "words": "the most frequent answer; one fixed box", "base": True, "cells": floor}]
    rows.append(_row("pixels", BASELINES["pixels"], pixels, chance, base=True))
    for suffix, scores in distinct({name: columns_of(metrics, "random") for name, metrics in measured.items()}):
        rows.append(_row("random" + suffix, BASELINES["random"], scores, chance, base=True))
    own = {name: columns_of(metrics, "backbone") for name, metrics in measured.items()}
    best = {column: max(scores[column]["value"] for scores in own.values()) for column in COLUMNS if column in chance}
    for name, scores in own.items():
        height, width = measured[name]["dense"]["backbone"]["places"]
        rows.append(_row(name, f"{height} × {width} positions", scores, chance, best=best))
    return {"titles": list(COLUMNS.values()), "rows": rows}


def _row(
    name: str,
    words: str,
    scores: dict[str, Any],
    chance: dict[str, float],
    *,
    base: bool = False,
    best: dict[str, float] | None = None,
) -> dict[str, Any]:
    cells: list[dict[str, Any] | None] = []
    for column in COLUMNS:
        if column not in scores:
            cells.append(None)
            continue
        value, floor = scores[column]["value"], chance[column]
        cell = {key: scores[column][key] for key in ("value", "low", "high")}
        share = max(0.0, value - floor) / (1 - floor) if floor < 1 else 0.0
        cells.append({**cell, "share": share, "best": best is not None and value == best[column]})
    return {"name": name, "words": words, "base": base, "cells": cells}
