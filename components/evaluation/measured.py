"""What a run leaves of its measured points: the names of files and folders, and which point is the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MEASURED = "measured.jsonl"
BEST, LAST = "best", "last"  # folders of a backbone beside the one that is kept, where the two are not the same


def best(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the best of the measured points: the first of equals, the earliest."""
    return max(lines, key=lambda line: float(line["value"]))
