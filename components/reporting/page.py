"""Renders the report: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.data.entries import DESCRIBE
from components.data.photos import Photos
from components.reporting.answers import KINDS, kinds, nats, sight
from components.reporting.basis import basis
from components.reporting.compared import tables
from components.reporting.figures import confusion, curves, data_uri, learned
from components.reporting.formats import over_seeds, percent
from components.reporting.issues import issue_sections
from components.reporting.kept import kept_table
from components.reporting.maps import Maps
from components.reporting.photo_map import PhotoMap
from components.reporting.provenance import provenance
from components.reporting.results import Results
from components.reporting.retrieval import retrieval
from components.reporting.table import table_rows
from components.reporting.verdict import backbone_sentence, next_sentence

CLASSIFIERS = {
    "linear": "A linear classifier on the frozen backbone",
    "mlp": "A classifier with one hidden layer on the frozen backbone",
    "attention": "Attention over the patches of the frozen backbone",
    "lora": "The backbone with low-rank updates (LoRA) and a linear layer",
    "full": "The backbone, fine-tuned with a linear layer,",
}


def render(
    results: Results,
    photos: Photos,
    neighbors: dict[str, dict[str, list[Any]]],
    queries: int,
    *,
    maps: Maps | None = None,
    photo_map: PhotoMap | None = None,
) -> str:
    """Returns the page as HTML.

    neighbors: as evaluate wrote them, of the best method; queries: how many of them to show; maps: where
    a backbone looks; photo_map: of the stage embed.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    environment.filters |= {"percent": percent, "nats": nats, "over_seeds": over_seeds}
    best = results.best_method()
    return environment.get_template("page.html").render(
        results=results,
        table=table_rows(results),
        kept=kept_table(results),
        compared=tables(results),
        basis=basis(results),
        most_seeds=max(map(results.seeds, results.methods), default=1),
        photo_map=photo_map,
        script=(Path(__file__).parent / "page.js").read_text(encoding="utf-8"),
        best=best,
        selection=results.methods[best].get("selection") if best else None,
        curves=[curves({name: lines}) for name, lines in results.logs.items()],
        learned={measured: learned(points) for measured, points in results.learned().items()},
        confusion=confusion(results.adapter["confusion"], results.adapter["classes"])
        if "confusion" in results.adapter
        else "",
        classifier=CLASSIFIERS[results.adapter.get("kind", "linear")],
        retrieval=retrieval(photos, neighbors, queries),
        maps=maps,
        made=provenance(results),
        mistakes=[
            {**_card(photos, one["row"]), "predicted": one["predicted"], "probability": one["probability"]}
            for one in results.adapter.get("mistakes", [])
        ],
        examples=[
            {"text": one["text"], "photos": [_card(photos, row) for row in one["rows"]]}
            for one in results.words.get("found", [])
        ],
        conversations=conversations(photos, results.answers),
        verdict=backbone_sentence(results),
        sight=sight(results.answering),
        next=next_sentence(results),
        kinds=kinds(results.answering),
        most_kinds=KINDS,
        describe=DESCRIBE,
        issues=issue_sections(photos, results.issues, results.quality),
        samples=[data_uri(photos[row]) for row in evenly_spaced(len(photos), 24)],
    )


def conversations(photos: Photos, answers: list[dict[str, Any]], most: int = 12) -> list[dict[str, Any]]:
    """Returns at most `most` photos, each with all its questions and answers."""
    by_row: dict[int, list[dict[str, Any]]] = {}
    for answer in answers:
        by_row.setdefault(answer["row"], []).append(answer)
    rows = list(by_row)
    shown = [rows[place] for place in evenly_spaced(len(rows), most)]
    return [{"image": data_uri(photos[row]), "answers": by_row[row]} for row in shown]


def _card(photos: Photos, row: int) -> dict[str, Any]:
    return {"image": data_uri(photos[row]), "label": photos.label(row) or ""}


def evenly_spaced(total: int, count: int) -> list[int]:
    """Returns at most `count` indices, evenly spaced over `total`."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
