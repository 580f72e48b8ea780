"""What the page shows of similarity search: the queries whose neighbors are best, and those whose are worst."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.data.photos import Photos
from components.reporting.figures import data_uri

PIXELS = 160  # of a photo's longer side


@dataclass(frozen=True)
class Query:
    """A test photo and its nearest training photos, best first. right: which of these share a class with it.

    A photo without a label is neither right nor wrong: None. cosine: the mean over the nearest photos. A query is
    judged only if it and all of its nearest photos have labels.
    """

    row: int
    near: list[int]
    right: list[bool | None]
    cosine: float

    @property
    def share(self) -> float:
        """Returns the fraction of right photos."""
        return sum(map(bool, self.right)) / len(self.right)


@dataclass(frozen=True)
class Retrieval:
    """labeled: whether queries were chosen by their classes, and not by cosines.

    best, worst: lines of the page, each with a card of the query and cards of its nearest photos; counted: queries;
    all_right, none_right: fractions of them whose nearest photos are all of their class, and none of whose are.
    """

    labeled: bool
    counted: int
    nearest: int
    all_right: float
    none_right: float
    best: list[dict[str, Any]]
    worst: list[dict[str, Any]]


def retrieval(photos: Photos, neighbors: dict[str, dict[str, list[Any]]], count: int) -> Retrieval | None:
    """Returns the best and the worst queries, `count` in all, the two at most one apart. None if there are no queries.

    Of the judged queries, the best are those with most right photos, then with the greatest cosines; the worst those
    with fewest, then with the greatest cosines, which are the mistakes that look most certain. Classes take turns. If
    none is judged, the best have the greatest mean cosine, the worst the least.

    neighbors: test row -> `rows` of its nearest training photos and their `cosines`, as evaluate wrote it.
    """
    labels = photos.manifest["labels"].to_list()
    found = [_query(int(row), near["rows"], near["cosines"], labels) for row, near in neighbors.items() if near["rows"]]
    known = [query for query in found if None not in query.right]
    if not found:
        return None
    queries = known or found
    count = min(count, len(queries))
    if known:
        best = _in_turns(sorted(queries, key=lambda query: (-query.share, -query.cosine)), labels)
        worst = _in_turns(sorted(queries, key=lambda query: (query.share, -query.cosine)), labels)
    else:
        best = sorted(queries, key=lambda query: -query.cosine)
        worst = best[::-1]
    good = best[: count - count // 2]
    bad = [query for query in worst if query not in good][: count // 2]
    shares = [query.share for query in queries]
    return Retrieval(
        bool(known),
        len(queries),
        max(len(query.near) for query in queries),
        shares.count(1.0) / len(shares),
        shares.count(0.0) / len(shares),
        [_line(photos, query, labels) for query in good],
        [_line(photos, query, labels) for query in bad],
    )


def _query(row: int, near: list[int], cosines: list[float], labels: list[list[str]]) -> Query:
    own = set(labels[row])
    right = [bool(own & set(labels[other])) if own and labels[other] else None for other in near]
    return Query(row, near, right, sum(cosines) / len(cosines))


def _in_turns(queries: list[Query], labels: list[list[str]]) -> list[Query]:
    """Returns the first query of each class, then the second of each, and so on, otherwise in the given order."""
    seen: dict[tuple[str, ...], int] = {}
    turns = []
    for query in queries:
        key = tuple(labels[query.row])
        seen[key] = seen.get(key, 0) + 1
        turns.append(seen[key])
    return [query for _, query in sorted(zip(turns, queries, strict=True), key=lambda pair: pair[0])]


def _line(photos: Photos, query: Query, labels: list[list[str]]) -> dict[str, Any]:
    near = [_card(photos, row, labels, right=right) for row, right in zip(query.near, query.right, strict=True)]
    return {"query": _card(photos, query.row, labels), "near": near, "cosine": query.cosine}


def _card(photos: Photos, row: int, labels: list[list[str]], *, right: bool | None = None) -> dict[str, Any]:
    return {"image": data_uri(photos[row], most=PIXELS), "label": " · ".join(labels[row]), "right": right}
