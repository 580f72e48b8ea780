"""Renders the photos that a search found: one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from components.data.photos import Photos
from components.reporting.figures import data_uri

MOST = 200  # queries on a page, which has all photos in it
PIXELS = 240  # of a photo's longer side on the page


@dataclass(frozen=True)
class Found:
    """What one query found, best first. query: a text, or the path of a photo, whose square is uint8 [3, S, S]."""

    query: str
    square: Tensor | None
    rows: list[int]  # of the prepared photos
    cosines: list[float]


def page(found: list[Found], photos: Photos) -> str:
    """Returns the page as HTML: each query with the photos that it found, at most MOST queries."""
    names = photos.manifest["path"]
    searches = [
        {
            "query": one.query,
            "image": None if one.square is None else data_uri(one.square, most=PIXELS),
            "near": [
                {
                    "image": data_uri(photos[row], most=PIXELS),
                    "path": names[row],
                    "label": photos.label(row),
                    "cosine": cosine,
                }
                for row, cosine in zip(one.rows, one.cosines, strict=True)
            ],
        }
        for one in found[:MOST]
    ]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    template = environment.get_template("found.html")
    return template.render(searches=searches, queries=len(found), photos=len(photos))
