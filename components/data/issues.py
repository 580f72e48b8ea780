"""Lists the photos that a person should look at: near-duplicates, and those that break a limit of quality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from components.data.near_duplicates import Pair
from components.data.quality import Measures, issues

NEAR_DUPLICATE = "near_duplicate"
SCHEMA = {"path": pl.String, "split": pl.String, "kind": pl.String, "score": pl.Float64, "other": pl.String}


def issue_table(manifest: pl.DataFrame, measures: Iterable[Measures], pairs: Iterable[Pair]) -> pl.DataFrame:
    """Returns a row for each issue of each photo of the manifest: path, split, kind, score, other.

    score: the correlation with `other`, the photo that is nearest, or the measure that breaks its limit.
    """
    paths, splits = manifest["path"].to_list(), manifest["split"].to_list()
    nearest: dict[int, tuple[float, int]] = {}
    for first, second, correlation in pairs:
        for row, other in ((first, second), (second, first)):
            if correlation > nearest.get(row, (0.0, 0))[0]:
                nearest[row] = correlation, other
    rows = [(row, NEAR_DUPLICATE, score, paths[other]) for row, (score, other) in sorted(nearest.items())]
    rows += [
        (row, kind, score, None)
        for row, photo_measures in enumerate(measures)
        for kind, score in issues(photo_measures).items()
    ]
    lines = [(paths[row], splits[row], kind, round(score, 4), other) for row, kind, score, other in rows]
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")


def count_issues(table: pl.DataFrame, max_paths: int = 20) -> dict[str, dict[str, Any]]:
    """Returns the number of photos and the first paths of each kind of issue, most frequent kind first."""
    kinds = table.group_by("kind", maintain_order=True).agg(pl.col("path"))
    lists: Sequence[tuple[str, list[str]]] = sorted(kinds.iter_rows(), key=lambda row: -len(row[1]))
    return {kind: {"count": len(paths), "paths": paths[:max_paths]} for kind, paths in lists}
