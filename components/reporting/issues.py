"""What the page shows of the photos that the backbone finds: near-duplicates, doubtful labels and odd photos."""

from __future__ import annotations

from typing import Any

from components.data.photos import Photos
from components.evaluation.issues import DOUBTFUL, DUPLICATE, ODD
from components.reporting.figures import data_uri

SHOWN = 8  # of each kind


def issue_sections(photos: Photos, issues: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Returns for each kind of issue that there is: its words, and `cards` of the first few.

    A card has one photo, of a duplicate two, and a caption. issues: the lines of issues.csv. Photos that are not
    prepared any more are left out.
    """
    manifest = photos.manifest
    rows = {path: row for row, path in enumerate(manifest["path"])}
    split = dict(zip(manifest["path"], manifest["split"], strict=True))
    sections = []
    for kind in (DUPLICATE, DOUBTFUL, ODD):
        lines = [line for line in issues if line["kind"] == kind and line["path"] in rows]
        if kind == DUPLICATE:
            lines = [line for line in lines if line["other"] in rows]
        if not lines:
            continue
        crossing = sum(split[line["path"]] != split.get(line["other"]) for line in lines)
        cards = [_card(photos, rows, line) for line in lines[:SHOWN]]
        sections.append({"words": _words(kind, len(lines), crossing), "cards": cards, "more": len(lines) - len(cards)})
    return sections


def _words(kind: str, count: int, crossing: int) -> str:
    number = f"{count:,} photo{'s' * (count > 1)}"
    if kind == DUPLICATE:
        words = f"{number} look{'s' * (count == 1)} nearly the same as another one"
        leak = "where one is in train and the other in test, accuracy on test is too high"
        return f"{words}, {crossing:,} of them as one in another split: {leak}." if crossing else f"{words}."
    if kind == DOUBTFUL:
        return f"{number} look{'s' * (count == 1)} more like photos of another class; the most doubtful first."
    return f"{number} look{'s' * (count == 1)} like no other: the farthest from their nearest photos first."


def _card(photos: Photos, rows: dict[str, int], line: dict[str, str]) -> dict[str, Any]:
    images = [data_uri(photos[rows[line["path"]]])]
    caption, title = line["label"] or line["path"], line["path"]
    if line["kind"] == DUPLICATE:
        images.append(data_uri(photos[rows[line["other"]]]))
        caption, title = f"cosine {float(line['score']):.3f}", f"{line['path']} · {line['other']}"
    elif line["kind"] == DOUBTFUL:
        caption = f"{line['label']} → {line['other']}?"
    return {"images": images, "caption": caption, "title": title}
