"""Photos that deserve a look, by the neighbors of their vectors: near-duplicates, doubtful labels, and odd photos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from components.data.splits import connected
from components.evaluation import knn
from components.evaluation.embeddings import Embeddings, chunks
from components.progress import progress

if TYPE_CHECKING:
    import polars as pl

NEIGHBORS = 20
FENCE = 3.0  # interquartile ranges above the third quartile: "far out" (Tukey, Exploratory Data Analysis, 1977)
KINDS = DUPLICATE, DOUBTFUL, ODD = "duplicate", "doubtful label", "odd"
COLUMNS = ("path", "split", "label", "kind", "score", "other")


class Search(Protocol):
    """What finds the photos nearest to some queries, [Q, D]: cosines [Q, k] and rows [Q, k], best first."""

    def __call__(self, queries: Tensor, k: int, among: Tensor | None = None, /) -> tuple[Tensor, Tensor]: ...


def find_issues(embeddings: Embeddings, search: Search, duplicate: float) -> pl.DataFrame:
    """Returns a row for each issue, with COLUMNS; the strongest of each kind first.

    duplicate: a photo of a group that is linked by cosines of at least `duplicate`; other: the first photo of the
    group, which has no row itself; score: their cosine.
    doubtful label: the other labeled photos vote for another class (weighted kNN); other: that class; score: 1 minus
    the share of the photo's own class in the vote.
    odd: its nearest photos are far away; score: their mean distance, 1 - cosine.
    """
    import polars as pl

    table = embeddings.table
    all_rows = np.arange(len(table))
    if len(table) < 2:
        return pl.DataFrame(schema={name: pl.Float64 if name == "score" else pl.String for name in COLUMNS})
    cosines, rows = neighbors(embeddings, search, all_rows)
    tables = [_duplicates(embeddings, cosines, rows, duplicate, table["path"])]
    labeled = np.flatnonzero(table["label"].is_not_null().to_numpy())
    names, codes = np.unique(table["label"].to_numpy()[labeled].astype(str), return_inverse=True)
    if len(names) > 1:
        labels = torch.full((len(table),), -1)
        labels[labeled] = torch.from_numpy(codes)
        nearest = (cosines, rows) if len(labeled) == len(table) else neighbors(embeddings, search, labeled)
        tables.append(_doubtful_labels(labeled, nearest, labels, names))
    tables.append(_outliers(cosines))
    parts = [table[part["row"].to_numpy()].select("path", "split", "label").hstack(part.drop("row")) for part in tables]
    return pl.concat(parts).select(COLUMNS)


def neighbors(embeddings: Embeddings, search: Search, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns the nearest of the photos in `rows` to each of them, without itself: cosines and rows [len(rows), k]."""
    among = torch.zeros(len(embeddings.vectors), dtype=torch.bool)
    among[rows] = True
    k = min(NEIGHBORS, len(rows) - 1)
    parts = []
    for batch in progress(list(chunks(rows, knn.TILE)), "neighbors", unit="batch"):
        nearest = search(torch.from_numpy(embeddings.vectors[batch]), k + 1, None if among.all() else among)
        parts.append(knn.others(torch.from_numpy(batch), *nearest))
    return torch.cat([cosines for cosines, _ in parts]), torch.cat([rows for _, rows in parts])


def groups(first: np.ndarray, second: np.ndarray) -> dict[int, int]:
    """Returns for each photo that is linked to others, directly or not, the smallest row among all of them."""
    links = list(zip(first.tolist(), second.tolist(), strict=True))
    singletons = {row: row for link in links for row in link}  # a row that is linked to itself only stays so
    return singletons | {row: part[0] for part in connected(links) for row in part}


def _duplicates(
    embeddings: Embeddings, cosines: Tensor, rows: Tensor, threshold: float, paths: pl.Series
) -> pl.DataFrame:
    photo, rank = (cosines >= threshold).nonzero(as_tuple=True)
    group_of = groups(photo.numpy(), rows[photo, rank].numpy())
    pairs = [(row, first) for row, first in sorted(group_of.items()) if row != first]
    copies, originals = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    scores = [
        (embeddings.directions(copies[part]) * embeddings.directions(originals[part])).sum(1)
        for part in chunks(np.arange(len(copies)))
    ]
    return _table(DUPLICATE, copies, torch.cat([torch.empty(0), *scores]), paths[originals].to_list())


def _doubtful_labels(
    labeled: np.ndarray, nearest: tuple[Tensor, Tensor], labels: Tensor, names: np.ndarray
) -> pl.DataFrame:
    label_shares, suggestions = [], []
    for part in chunks(np.arange(len(labeled))):
        shares = knn.shares(nearest[0][part], labels[nearest[1][part]], len(names))
        label_shares.append(shares.gather(1, labels[labeled[part]][:, None])[:, 0])
        suggestions.append(shares.argmax(1))
    share, best = torch.cat(label_shares), torch.cat(suggestions)
    suspects = (best != labels[labeled]).nonzero()[:, 0]
    return _table(DOUBTFUL, labeled[suspects], 1 - share[suspects], names[best[suspects]].tolist())


def _outliers(cosines: Tensor) -> pl.DataFrame:
    distances = 1 - cosines.mean(1).double()
    low, high = (float(distances.quantile(q)) for q in (0.25, 0.75))
    rows = (distances > high + FENCE * (high - low)).nonzero()[:, 0]
    return _table(ODD, rows.numpy(), distances[rows], [""] * len(rows))


def _table(kind: str, rows: np.ndarray, scores: Tensor, other: list[str]) -> pl.DataFrame:
    import polars as pl

    columns = {"row": rows, "kind": [kind] * len(rows), "score": scores.double().numpy(), "other": other}
    schema = {"row": pl.Int64, "kind": pl.String, "score": pl.Float64, "other": pl.String}
    return pl.DataFrame(columns, schema).sort("score", descending=True, maintain_order=True)
