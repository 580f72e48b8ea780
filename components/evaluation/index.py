"""An approximate index of many vectors: inverted lists, of which a search reads those nearest to the query.

Jégou et al., Product Quantization for Nearest Neighbor Search, TPAMI 2011, section IV (here lists hold whole vectors).
https://inria.hal.science/inria-00514462 . The lists are those of faiss, an extra package.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from components.evaluation import knn
from components.evaluation.embeddings import Embeddings

INDEX, ABOUT = "index.faiss", "index.json"
INSTALL = "faiss, which makes an index of them, is not installed: pip install faiss-cpu"
CHUNK = 65_536  # vectors added at a time
LISTS = 4  # times the square root of the vectors' number
POINTS = 40  # vectors of each list from which its center is computed
QUERIES, K, RECALL = 200, 10, 0.95  # lists are read until this share of the K nearest of QUERIES photos is found


def installed() -> bool:
    return importlib.util.find_spec("faiss") is not None


def about(folder: Path) -> dict[str, Any]:
    """Returns what `build` found out about the index in a folder."""
    return dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))


def describe(numbers: dict[str, Any]) -> str:
    """Returns what index.json holds, as a sentence."""
    return (
        f"an index of {numbers['lists']:,} lists, of which a search reads {numbers['probes']}, finds "
        f"{100 * numbers['recall']:.1f} % of the {numbers['k']} nearest photos (measured on {numbers['queries']})"
    )


def remove(folder: Path) -> None:
    for name in (ABOUT, INDEX):
        (folder / name).unlink(missing_ok=True)


def build(embeddings: Embeddings, seed: int = 0) -> dict[str, Any]:
    """Writes index.faiss and index.json beside the vectors. Returns what index.json holds.

    lists: how many there are; probes: how many a search reads, the fewest (a power of two) with a recall of RECALL;
    recall: the share of the K nearest other photos that is found, of `queries` photos drawn at random.
    """
    faiss, count = _faiss(), len(embeddings.vectors)
    lists = max(1, 2 ** round(np.log2(LISTS * count**0.5)))
    random = np.random.default_rng(seed)
    width = embeddings.vectors.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.min_points_per_centroid = seed, 1  # faiss prints a warning where photos are few
    sample = np.sort(random.permutation(count)[: POINTS * lists])
    index.train(embeddings.directions(sample).numpy())
    for start in range(0, count, CHUNK):
        index.add(embeddings.directions(slice(start, start + CHUNK)).numpy())
    part = embeddings.folder / f"{INDEX}.part"
    faiss.write_index(index, str(part))
    part.replace(embeddings.folder / INDEX)
    rows = torch.from_numpy(np.sort(random.permutation(count)[:QUERIES]))
    numbers = {"lists": lists, **_probes(Index(index, embeddings), rows), "k": K, "queries": len(rows)}
    (embeddings.folder / ABOUT).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return numbers


def _probes(index: Index, rows: Tensor) -> dict[str, Any]:
    """Returns how many lists to read, and the recall of the photos in `rows`, which look for others."""
    queries = torch.from_numpy(index.embeddings.vectors[rows.numpy()])
    _, expected = knn.others(rows, *index.embeddings.nearest(queries, K + 1))
    probes = 1
    while True:
        index.faiss_index.nprobe = probes
        _, retrieved = knn.others(rows, *index.nearest(queries, K + 1))
        recall = float((retrieved[:, :, None] == expected[:, None, :]).any(1).float().mean())
        if recall >= RECALL or probes >= index.faiss_index.nlist:
            return {"probes": probes, "recall": recall}
        probes *= 2


@dataclass(frozen=True)
class Index:
    """Searches through the lists that are nearest to a query. faiss_index: with the number of lists to read set."""

    faiss_index: Any
    embeddings: Embeddings

    @classmethod
    def read(cls, embeddings: Embeddings) -> Index | None:
        """Returns the index of these vectors, None if none was written or faiss is not installed.

        Its lists are memory-mapped, so that only those that are searched are read.
        """
        if not (embeddings.folder / ABOUT).is_file() or not installed():
            return None
        faiss = _faiss()
        index = cls(faiss.read_index(str(embeddings.folder / INDEX), faiss.IO_FLAG_MMAP), embeddings)
        index.faiss_index.nprobe = about(embeddings.folder)["probes"]
        return index

    def nearest(self, queries: Tensor, k: int, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Like Embeddings.nearest, but may miss some. Where the lists hold fewer than k photos, all are searched."""
        directions, options = normalize(queries - self.embeddings.center, dim=1), {}
        k = min(k, len(self.embeddings.vectors) if among is None else int(among.sum()))
        if among is not None:
            faiss = _faiss()
            selector = faiss.IDSelectorBatch(among.nonzero()[:, 0].numpy())
            options["params"] = faiss.SearchParametersIVF(sel=selector, nprobe=self.faiss_index.nprobe)
        cosines, rows = map(torch.from_numpy, self.faiss_index.search(directions.numpy(), k, **options))
        too_few = (rows < 0).any(1)
        if too_few.any():
            cosines[too_few], rows[too_few] = self.embeddings.nearest(queries[too_few], k, among)
        return cosines, rows


def _faiss() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the types that SWIG generates
        import faiss
    return faiss
