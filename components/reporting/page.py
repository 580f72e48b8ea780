"""Renders the report: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.data.entries import DESCRIBE
from components.data.photos import Photos
from components.reporting.answers import KINDS, kinds, nats, sight
from components.reporting.figures import confusion, curves, data_uri
from components.reporting.results import Results, percent

ISSUES = {  # what a photo is, by the kind in issues.csv, and what the number beside it means
    "near_duplicate": ("nearly the same as another photo", "correlation"),
    "blurred": ("blurred", "sharpness"),
    "dark": ("dark", "brightest 5 % from"),
    "bright": ("overexposed", "darkest 5 % up to"),
    "blank": ("almost blank", "bits of entropy"),
    "aspect": ("of an odd shape", "longer side over the shorter"),
    "tiny": ("tiny", "shorter side over data.size"),
}


def render(results: Results, photos: Photos, neighbors: dict[str, list[int]], queries: int) -> str:
    """Returns the page as HTML.

    neighbors: test row -> its nearest training rows, by the best method; queries: how many of them to show.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    environment.filters |= {"percent": percent, "nats": nats}
    best = results.best_method()
    return environment.get_template("page.html").render(
        results=results,
        table=results.table(),
        best=best,
        selection=results.methods[best].get("selection") if best else None,
        curves=curves(results.logs) if results.logs else "",
        confusion=confusion(results.adapter["confusion"], results.adapter["classes"])
        if "confusion" in results.adapter
        else "",
        retrieval=retrieval(photos, neighbors, queries),
        examples=[
            {"text": one["text"], "photos": [_card(photos, row) for row in one["rows"]]}
            for one in results.words.get("found", [])
        ],
        conversations=conversations(photos, results.answers),
        sight=sight(results.answering),
        kinds=kinds(results.answering),
        most_kinds=KINDS,
        describe=DESCRIBE,
        issues=issues(photos, results.issues),
        samples=[data_uri(photos[row]) for row in evenly_spaced(len(photos), 24)],
    )


def retrieval(photos: Photos, neighbors: dict[str, list[int]], queries: int) -> list[dict[str, Any]]:
    """Returns `queries` test photos, each with its nearest training photos and whether their classes agree."""
    rows = list(neighbors)
    lines = []
    for place in evenly_spaced(len(rows), queries):
        query = int(rows[place])
        near = [_card(photos, other, query) for other in neighbors[rows[place]]]
        lines.append({"query": _card(photos, query), "near": near})
    return lines


def conversations(photos: Photos, answers: list[dict[str, Any]], most: int = 12) -> list[dict[str, Any]]:
    """Returns at most `most` photos, each with all its questions and answers."""
    by_row: dict[int, list[dict[str, Any]]] = {}
    for answer in answers:
        by_row.setdefault(answer["row"], []).append(answer)
    rows = list(by_row)
    shown = [rows[place] for place in evenly_spaced(len(rows), most)]
    return [{"image": data_uri(photos[row]), "answers": by_row[row]} for row in shown]


def issues(photos: Photos, rows: list[dict[str, str]], most: int = 6) -> list[dict[str, Any]]:
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


def _card(photos: Photos, row: int, query: int | None = None) -> dict[str, Any]:
    label = photos.label(row)
    agrees = None if query is None or label is None else label == photos.label(query)
    return {"image": data_uri(photos[row]), "label": label or "", "agrees": agrees}


def evenly_spaced(total: int, count: int) -> list[int]:
    """Returns at most `count` indices, evenly spaced over `total`."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
