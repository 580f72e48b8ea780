"""Stage: a backbone -> what it knows, beside what anyone would know without it."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from components.config import Seed, Strict, read, write
from components.data.photos import Photos
from components.evaluation import knn
from components.evaluation.features import block_features, center
from components.evaluation.health import effective_rank, spread
from components.evaluation.scoring import baselines, cannot_score, score, score_blocks
from components.machine import keep_memory
from components.models.backbone import ResNetBackbone, ViTBackbone, load
from components.stages.scratch import digest, scratch


class EvaluateConfig(Strict):
    neighbors: int = Field(20, ge=1)
    retrieved: int = Field(5, ge=1)  # neighbors remembered for every test picture
    seed: Seed = 0  # of the random backbone


def evaluate(config: EvaluateConfig, folder: Path, data: Path, out: Path) -> dict[str, Any]:
    """Measure folder/backbone; write metrics.json, neighbors.json and config.json to `out`."""
    photos = Photos(data)
    backbone = load(folder / "backbone")
    blocks = block_features(backbone, photos)
    vectors = blocks[-1]
    held_out = photos.rows("test") if len(photos.rows("test")) else photos.rows("train")
    sample = vectors[np.random.default_rng(config.seed).permutation(held_out)[:4096]]  # rows lie class by class
    health = {"effective_rank": effective_rank(sample), "spread": spread(sample), "dimensions": backbone.dim}
    metrics: dict[str, Any] = {"health": health}
    if why := cannot_score(photos):
        metrics["not_measured"] = {"knn, linear and their baselines": why}
    else:
        metrics |= known_baselines(photos, backbone.config, config)
        metrics["backbone"] = score(vectors, photos, config.neighbors)
        metrics["blocks"] = score_blocks(blocks, photos, config.neighbors)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    found = neighbors(vectors, photos.rows("train"), held_out, config.retrieved)
    (out / "neighbors.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    write(config, out / "config.json")
    return metrics


def known_baselines(photos: Photos, shape: ViTBackbone | ResNetBackbone, config: EvaluateConfig) -> dict[str, Any]:
    """Computed once for all methods with a backbone of one shape."""
    of = (config.model_dump(mode="json"), shape.model_dump(mode="json"), digest(photos.folder / "manifest.parquet"))
    file = scratch("evaluate", *of) / "baselines.json"
    if not file.is_file():
        found = json.dumps(baselines(photos, shape, config.neighbors, config.seed))
        written = file.with_suffix(f".{os.getpid()}")
        written.write_text(found, encoding="utf-8")
        written.rename(file)  # whole or not at all: another method may be looking
    return dict(json.loads(file.read_text(encoding="utf-8")))


def neighbors(vectors: Tensor, bank: np.ndarray, queries: np.ndarray, count: int) -> dict[str, list[int]]:
    """For every query row its `count` nearest rows of the bank, best first, never itself."""
    known, asked = center(vectors[bank], vectors[queries])
    _, places = knn.nearest(asked, known, min(count + 1, len(bank)))
    near = zip(queries.tolist(), bank[places.numpy()].tolist(), strict=True)
    return {str(row): [other for other in rows if other != row][:count] for row, rows in near}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", type=Path, required=True, help="folder written by pretrain")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    keep_memory()
    try:
        metrics = evaluate(read("evaluate", EvaluateConfig), given.backbone, given.data, given.out)
    except ValueError as error:
        parser.exit(2, f"evaluate: {error}\n")
    for name in ("majority", "pixels", "random", "backbone"):
        for kind, said in metrics.get(name, {}).items():
            print(f"evaluate: {name:9} {kind:7} {said['value']:.3f} ({said['low']:.3f} to {said['high']:.3f})")
    for kind in ("knn", "linear") if "blocks" in metrics else ():
        said = ", ".join(f"{block[kind]['value']:.3f}" for block in metrics["blocks"])
        print(f"evaluate: blocks    {kind:7} {said}")
    for name, why in metrics.get("not_measured", {}).items():
        print(f"evaluate: not measured: {name}: {why}")
    print(f"evaluate: effective rank {metrics['health']['effective_rank']:.1f} of {metrics['health']['dimensions']}")


if __name__ == "__main__":
    main()
