"""One self-contained page: the table, the curves, what is near to what, and what the language model saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.data.photos import Photos
from components.reporting.figures import confusion, curves, picture
from components.reporting.findings import BASELINES, Findings, said


def render(findings: Findings, photos: Photos, neighbors: dict[str, list[int]], queries: int) -> str:
    """The page. neighbors: row -> its nearest rows, by the best method; queries: how many of them to show."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    environment.filters["said"] = said
    return environment.get_template("page.html").render(
        f=findings,
        baselines=BASELINES,
        table=findings.table(),
        best=findings.best(),
        curves=curves(findings.logs),
        confusion=confusion(findings.adapter["confusion"], findings.adapter["classes"])
        if "confusion" in findings.adapter
        else "",
        grid=retrieval(photos, neighbors, queries),
        answers=conversations(photos, findings.answers),
        samples=[picture(photos[row]) for row in _spread_out(len(photos), 24)],
    )


def retrieval(photos: Photos, neighbors: dict[str, list[int]], queries: int) -> list[dict[str, Any]]:
    """Queries evenly over the test pictures, each with its neighbors and whether their labels agree."""
    rows = list(neighbors)
    found = []
    for place in _spread_out(len(rows), queries):
        row = int(rows[place])
        near = [_card(photos, other, row) for other in neighbors[rows[place]]]
        found.append({"query": _card(photos, row), "near": near})
    return found


def conversations(photos: Photos, answers: list[dict[str, Any]], most: int = 12) -> list[dict[str, Any]]:
    """Pictures with all their questions, in the order they were asked."""
    by_row: dict[int, list[dict[str, Any]]] = {}
    for answer in answers:
        by_row.setdefault(answer["row"], []).append(answer)
    chosen = _spread_out(len(by_row), most)
    rows = list(by_row)
    return [{"image": picture(photos[rows[i]]), "said": by_row[rows[i]]} for i in chosen]


def _card(photos: Photos, row: int, query: int | None = None) -> dict[str, Any]:
    label = photos.label(row)
    agrees = None if query is None or label is None else label == photos.label(query)
    return {"image": picture(photos[row]), "label": label or "", "agrees": agrees}


def _spread_out(total: int, count: int) -> list[int]:
    """At most `count` places, evenly over `total`."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
