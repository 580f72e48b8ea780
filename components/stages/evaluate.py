"""Stage: measures a frozen backbone, and baselines that need no training, on the same photos."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from components.config import Seed, Strict, parse, read_section, write_config
from components.data.photos import Photos
from components.evaluation import knn
from components.evaluation.attention import MAPS, write_maps
from components.evaluation.features import block_features, center, features
from components.evaluation.health import effective_rank, feature_std
from components.evaluation.scoring import baselines, cannot_score, compare, score, score_blocks, selection_score
from components.evaluation.similar import similar_photos
from components.machine import keep_memory
from components.models.backbone import Backbone, PublishedBackbone, build, load
from components.precision import uses_bf16
from components.source_files import digest
from components.stages.exit_code import backbone_parser, exit_code
from components.stages.scratch import scratch


class EvaluateConfig(Strict):
    neighbors: int = Field(20, ge=1)  # of the kNN classifier
    retrieved: int = Field(5, ge=1)  # nearest training photos written for each test photo
    maps: int = Field(6, ge=0)  # test photos of which it is drawn where the backbone looks
    seed: Seed = 0  # of the random backbone


def evaluate(config: EvaluateConfig, folder: Path, data: Path, out: Path) -> dict[str, Any]:
    """Measure folder/backbone; write metrics.json, neighbors.json, maps.safetensors and config.json to `out`.

    Returns the metrics.

    metrics: health of the features (needs no labels); with labels also the accuracy on test of the baselines
    (majority, pixels, random), of the backbone and after each of its blocks, how well test photos find others of their
    class or caption ("retrieval", also without labels, if there are captions), and under "selection" the accuracy by
    which methods are compared, which is not measured on test.
    """
    photos = Photos(data)
    backbone = load(folder / "backbone")
    blocks = block_features(backbone, photos)
    vectors = blocks[-1]
    test = photos.rows("test") if len(photos.rows("test")) else photos.rows("train")
    sample = vectors[np.random.default_rng(config.seed).permutation(test)[:4096]]  # shuffled: rows are in class order
    health = {
        "effective_rank": effective_rank(sample),
        "feature_std": feature_std(sample),
        "dimensions": backbone.dim,
        "photos": len(sample),
    }
    metrics: dict[str, Any] = {"health": health}
    if reason := cannot_score(photos):
        metrics["not_measured"] = {"knn, linear and their baselines": reason}
        if found := similar_photos(vectors, photos):
            metrics["retrieval"] = found
    else:
        metrics |= cached_baselines(photos, backbone, folder / "backbone", config)
        metrics["backbone"] = score(vectors, photos, config.neighbors)
        metrics["blocks"] = score_blocks(blocks, photos, config.neighbors)
        metrics["selection"] = selection_score(vectors, photos, config.neighbors, config.seed)
        try:
            start = _start(folder)
        except ValueError as error:  # its weights are not there any more
            metrics["not_measured"] = {"its start": str(error).partition("\n")[0]}
        else:
            if start:
                start_vectors = features(start, photos, "start")
                metrics["start"] = score(start_vectors, photos, config.neighbors)
                metrics["against_start"] = compare(vectors, start_vectors, photos, config.neighbors)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    near = neighbors(vectors, photos.rows("train"), test, config.retrieved)
    (out / "neighbors.json").write_text(json.dumps(near) + "\n", encoding="utf-8")
    (out / MAPS).unlink(missing_ok=True)
    if config.maps and not backbone.patches:
        shown = test[np.linspace(0, len(test) - 1, min(config.maps, len(test))).astype(int)]
        write_maps(backbone, photos, shown, out / MAPS)
    write_config(config, out / "config.json")
    return metrics


def _start(folder: Path) -> Backbone | None:
    """Returns the published backbone that the one in `folder` was trained from, None if there is none."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if config.get("backbone", {}).get("kind") != "published" or not config["epochs"]:
        return None
    return build(parse(PublishedBackbone, config["backbone"], str(file)))


def cached_baselines(photos: Photos, backbone: Backbone, folder: Path, config: EvaluateConfig) -> dict[str, Any]:
    """Returns `baselines`, computed once in each precision for all methods with a backbone of one shape."""
    shape = [digest(folder / name) for name in ("config.json", "preprocessor_config.json")]
    key = (config.model_dump(mode="json"), shape, digest(photos.folder / "manifest.parquet"))
    file = scratch("evaluate", *key, {"bf16": uses_bf16()}) / "baselines.json"
    if not file.is_file():
        text = json.dumps(baselines(photos, backbone, config.neighbors, config.seed))
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.rename(file)  # complete or absent: another process may read it now
    return dict(json.loads(file.read_text(encoding="utf-8")))


def neighbors(vectors: Tensor, bank: np.ndarray, queries: np.ndarray, count: int) -> dict[str, list[int]]:
    """Returns for each query row its `count` nearest rows of the bank, best first, without the row itself."""
    bank_vectors, query_vectors = center(vectors[bank], vectors[queries])
    _, places = knn.nearest(query_vectors, bank_vectors, min(count + 1, len(bank)))
    near = zip(queries.tolist(), bank[places.numpy()].tolist(), strict=True)
    return {str(row): [other for other in rows if other != row][:count] for row, rows in near}


def main() -> None:
    parser = backbone_parser(__doc__)
    args = parser.parse_args()
    keep_memory()
    with exit_code("evaluate", parser):
        metrics = evaluate(read_section("evaluate", EvaluateConfig), args.backbone, args.data, args.out)
    for name in ("majority", "pixels", "random", "start", "backbone"):
        scores = dict(metrics.get(name, {}))
        found = scores.pop("retrieval", {})
        for kind, accuracy in (scores | {f"mAP@R {of}": values["map_at_r"] for of, values in found.items()}).items():
            print("evaluate: {:9} {:7} {value:.3f} ({low:.3f} to {high:.3f})".format(name, kind, **accuracy))
    for kind in ("knn", "linear") if "blocks" in metrics else ():
        values = ", ".join(f"{block[kind]['value']:.3f}" for block in metrics["blocks"])
        print(f"evaluate: blocks    {kind:7} {values}")
    if "selection" in metrics:
        selection = metrics["selection"]
        print(f"evaluate: for choosing a method: knn {selection['knn']['value']:.3f} on {selection['on']}")
    for name, reason in metrics.get("not_measured", {}).items():
        print(f"evaluate: not measured: {name}: {reason}")
    print(f"evaluate: effective rank {metrics['health']['effective_rank']:.1f} of {metrics['health']['dimensions']}")


if __name__ == "__main__":
    main()
