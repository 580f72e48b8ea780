"""What the page shows of the photos that are nearly the same, blurred, dark, blank or of an odd shape or size."""

from __future__ import annotations

from typing import Any

from components.data.photos import Photos
from components.reporting.figures import data_uri

ISSUES = {  # what a photo is, by the kind in issues.csv, and what the number beside it means
    "near_duplicate": ("nearly the same as another photo", "correlation"),
    "blurred": ("blurred", "sharpness"),
    "dark": ("dark", "brightest 5 % from"),
    "bright": ("overexposed", "darkest 5 % up to"),
    "blank": ("almost blank", "bits of entropy"),
    "aspect": ("of an odd shape", "longer side over the shorter"),
    "tiny": ("tiny", "shorter side over data.size"),
}


def quality_sections(photos: Photos, rows: list[dict[str, str]], most: int = 6) -> list[dict[str, Any]]:
    """Returns the kinds of issues, each with its sentence, the number of photos and at most `most` of them as images.

    Of near-duplicates both photos are shown, and each pair once. rows: of issues.csv.
    """
    row_of = {path: row for row, path in enumerate(photos.manifest["path"])} if rows else {}
    kinds: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    blocks = []
    for kind, of_kind in sorted(kinds.items(), key=lambda item: -len(item[1])):
        groups: dict[tuple[str, ...], dict[str, str]] = {}
        for row in of_kind:
            groups.setdefault(tuple(sorted(filter(None, (row["path"], row["other"])))), row)
        shown = list(groups)[:: max(1, len(groups) // most)][:most]
        cards = [[{"image": data_uri(photos[row_of[path]]), "path": path} for path in paths] for paths in shown]
        words, scores = ISSUES[kind], [groups[paths]["score"] for paths in shown]
        photos_shown = list(zip(cards, scores, strict=True))
        blocks.append({"words": words, "count": len(of_kind), "photos": photos_shown})
    return blocks
