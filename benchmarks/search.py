"""Search among a million vectors: ours, with all vectors and by the index, beside faiss.

python -m benchmarks.search FOLDER [--rows 1000000] [--width 384] [--sides flat,exact,index]

Writes clustered random vectors to FOLDER as the stage `embed` does, once; each side then runs in a process of its own,
on one thread. Seconds are those of the CPU, which other work on the machine disturbs least.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CLUSTERS, SPREAD, OFFSET = 1000, 1.5, 0.5  # vectors: OFFSET + a cluster's center of deviation 1 + noise of SPREAD
COUNTS, K, REPEATS = (1, 10, 100), 10, 5
Search = Callable[[np.ndarray], Any]  # queries [Q, D], raw vectors of embed -> rows [Q, K]


def write(args: Namespace) -> dict[str, Any]:
    """Writes the vectors, and queries from the same clusters that are not among them."""
    from components.evaluation import embeddings as names

    random = np.random.default_rng(0)
    centers = random.standard_normal((CLUSTERS, args.width), dtype=np.float32)
    shape = (args.rows, args.width)
    vectors = np.lib.format.open_memmap(args.folder / names.VECTORS, mode="w+", dtype=np.float32, shape=shape)
    for rows in names.chunks(np.arange(args.rows)):
        vectors[rows] = _draw(random, centers, len(rows))
    vectors.flush()
    center, norms = names.center_and_norms(vectors, np.arange(args.rows))
    np.save(args.folder / names.CENTER, center)
    np.save(args.folder / names.NORMS, norms)
    np.save(args.folder / "queries.npy", _draw(random, centers, max(COUNTS)))
    (args.folder / names.KEY).write_text("{}", encoding="utf-8")
    return {}


def _draw(random: np.random.Generator, centers: np.ndarray, count: int) -> np.ndarray:
    noise = random.standard_normal((count, centers.shape[1]), dtype=np.float32)
    return OFFSET + centers[random.integers(0, CLUSTERS, count)] + SPREAD * noise


def exact(folder: Path) -> tuple[Search, float]:
    import torch

    from components.evaluation.embeddings import Embeddings

    embeddings = Embeddings.read(folder)
    return lambda queries: embeddings.nearest(torch.from_numpy(queries), K)[1].numpy(), 0.0


def index(folder: Path) -> tuple[Search, float]:
    """The index as `embed` builds it, then read as `search` reads it."""
    import torch

    from components.evaluation.embeddings import Embeddings
    from components.evaluation.index import Index, build, describe

    embeddings = Embeddings.read(folder)
    start = time.process_time()
    print(describe(build(embeddings)), file=sys.stderr)
    seconds = time.process_time() - start
    faiss_index = Index.read(embeddings)
    assert faiss_index, "faiss is needed"
    return lambda queries: faiss_index.nearest(torch.from_numpy(queries), K)[1].numpy(), seconds


def flat(folder: Path) -> tuple[Search, float]:
    import faiss

    return _by_faiss(folder, faiss.IndexFlatIP(np.load(folder / "center.npy").size))


def hnsw(folder: Path) -> tuple[Search, float]:
    import faiss

    faiss_index = faiss.IndexHNSWFlat(np.load(folder / "center.npy").size, 32, faiss.METRIC_INNER_PRODUCT)
    faiss_index.hnsw.efSearch = 128
    return _by_faiss(folder, faiss_index)


def _by_faiss(folder: Path, faiss_index: Any) -> tuple[Search, float]:
    vectors, center = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "center.npy")

    def unit(x: np.ndarray) -> np.ndarray:
        centered = x - center
        return np.asarray(centered / np.linalg.norm(centered, axis=1, keepdims=True))

    clock_start = time.process_time()
    for start in range(0, len(vectors), 65_536):
        faiss_index.add(unit(vectors[start : start + 65_536]))
    return lambda queries: faiss_index.search(unit(queries), K)[1], time.process_time() - clock_start


def measure(args: Namespace) -> dict[str, Any]:
    """Returns the seconds to build, and for each number of queries the fewest of REPEATS; writes the rows found."""
    search, build = {"exact": exact, "index": index, "flat": flat, "hnsw": hnsw}[args.side](args.folder)
    queries, seconds = np.load(args.folder / "queries.npy"), {}
    np.save(args.folder / f"found_{args.side}.npy", search(queries))
    for count in COUNTS:
        times = []
        for repeat in range(REPEATS):
            batch = np.roll(queries, repeat * count, axis=0)[:count]
            start = time.process_time()
            search(batch)
            times.append(time.process_time() - start)
        seconds[count] = min(times)
    return {"build": build, "seconds": seconds}


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument(
        "--sides", default="flat,exact,index", help="of flat, exact, index, hnsw; the first is the truth"
    )
    parser.add_argument("--side", help="measure one side in this process, or write the vectors")
    args = parser.parse_args()
    if args.side:
        results = (write if args.side == "write" else measure)(args)
        print(json.dumps({**results, "memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "embed.json").is_file():
        run(args, "write")
    sides = args.sides.split(",")
    print(f"{args.rows:,} vectors of {args.width} numbers; the {K} nearest\n")
    heads = [f"{count} quer{'y' if count == 1 else 'ies'}, ms" for count in COUNTS]
    print(f"| | build, s | {' | '.join(heads)} | recall@{K} | peak memory, GB |\n|---|" + "---|" * (len(COUNTS) + 3))
    for side in sides:
        results = run(args, side)
        truth, retrieved = (np.load(args.folder / f"found_{name}.npy") for name in (sides[0], side))
        recall = (truth[:, :, None] == retrieved[:, None, :]).any(2).mean()
        times = " | ".join(f"{1000 * results['seconds'][str(count)]:,.1f}" for count in COUNTS)
        memory = results["memory"] / 1e9
        print(f"| {side} | {results['build']:,.0f} | {times} | {100 * recall:.1f} % | {memory:.2f} |", flush=True)


def run(args: Namespace, side: str) -> dict[str, Any]:
    """Returns what one side prints, from a process of its own."""
    line = [str(args.folder), "--rows", str(args.rows), "--width", str(args.width), "--side", side]
    command, environment = [sys.executable, "-m", "benchmarks.search", *line], {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(process.stdout))


if __name__ == "__main__":
    main()
