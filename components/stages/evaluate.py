"""Stage: measures a frozen backbone, and baselines that need no training, on the same photos."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from components.config import Seed, Strict, parse, read_section, write_config
from components.data.photos import Photos
from components.data.truth import read_truths
from components.evaluation import knn
from components.evaluation.attention import MAPS, write_maps
from components.evaluation.features import block_features, center, features
from components.evaluation.known_photos import UNKNOWN, known_baselines, measure_known
from components.evaluation.other_snapshot import measure_other_snapshot
from components.evaluation.scoring import (
    Correct,
    baselines,
    cannot_score,
    compare,
    score,
    score_blocks,
)
from components.evaluation.seeds import CORRECT, measure_seed, over_seeds, read_correct, write_correct
from components.evaluation.similar import similar_photos
from components.machine import keep_memory
from components.models.backbone import Backbone, PublishedBackbone, build, load
from components.precision import uses_bf16
from components.source_files import digest
from components.stages.exit_code import backbone_parser, command, exit_code
from components.stages.scratch import scratch
from components.stages.seeds import seed_folders


class EvaluateConfig(Strict):
    neighbors: int = Field(20, ge=1)  # of the kNN classifier
    retrieved: int = Field(5, ge=1)  # nearest training photos written for each test photo
    maps: int = Field(6, ge=0)  # test photos of which it is drawn where the backbone looks
    seed: Seed = 0  # of the random backbone


def evaluate(config: EvaluateConfig, folder: Path, data: Path, out: Path) -> dict[str, Any]:
    """Measure folder/backbone; write metrics.json, neighbors.json, maps.safetensors and config.json to `out`.

    correct.safetensors: which test photos are right by the backbone of each seed, and by the baselines (see seeds.py).
    Returns the metrics.

    metrics: health of the features (needs no labels); with labels also the accuracy on test of the baselines
    (majority, pixels, random), of the backbone and after each of its blocks, how well test photos find others of their
    class or caption ("retrieval", also without labels, if there are captions), and under "selection" the accuracy by
    which methods are compared, which is not measured on test. snapshot: see other_snapshot.py. seeds: the values of
    each seed, with mean and deviation; all else but `snapshot` is of the first seed.
    kept, dense: what can be read from the features of photos whose contents are known (see known_photos.py). command:
    the one that measures this again.
    """
    photos = Photos(data)
    backbone = load(folder / "backbone")
    blocks = block_features(backbone, photos)
    vectors = blocks[-1]
    test = photos.rows("test") if len(photos.rows("test")) else photos.rows("train")
    seeds: dict[int, dict[str, Any]] = {}
    correct: dict[str, list[Correct]] = {"backbone": []}
    folders = seed_folders(folder)
    for seed, path in folders.items():
        seed_vectors = vectors if path == folder else features(load(path / "backbone"), photos, f"seed {seed}")
        seeds[seed], seed_correct = measure_seed(seed_vectors, photos, test, config.neighbors, config.seed)
        correct["backbone"].append(seed_correct)
    metrics = {**next(iter(seeds.values())), "seeds": over_seeds(seeds)}
    if snapshot := measure_other_snapshot(folders, seeds, photos, test, config.neighbors, config.seed):
        metrics["snapshot"] = snapshot
    if reason := cannot_score(photos):
        metrics["not_measured"] = {"knn, linear and their baselines": reason}
        if retrieval_metrics := similar_photos(vectors, photos):
            metrics["retrieval"] = retrieval_metrics
    else:
        baseline_scores, baseline_correct = cached_baselines(photos, backbone, folder / "backbone", config)
        metrics |= baseline_scores
        correct |= {name: [by_kind] for name, by_kind in baseline_correct.items()}
        metrics["blocks"] = score_blocks(blocks, photos, config.neighbors)
        try:
            start = _start(folder)
        except ValueError as error:  # its weights are not there any more
            metrics["not_measured"] = {"its start": str(error).partition("\n")[0]}
        else:
            if start:
                start_vectors = features(start, photos, "start")
                metrics["start"] = score(start_vectors, photos, config.neighbors)
                metrics["against_start"] = compare(vectors, start_vectors, photos, config.neighbors)
    metrics |= measure_truth(vectors, photos, backbone, folder / "backbone", config)
    metrics["manifest"] = digest(data / "manifest.parquet")  # metrics of other photos are not compared with these
    metrics["command"] = command("evaluate", backbone=folder, data=data, out=out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    nearest = neighbors(vectors, photos.rows("train"), test, config.retrieved)
    (out / "neighbors.json").write_text(json.dumps(nearest) + "\n", encoding="utf-8")
    (out / CORRECT).unlink(missing_ok=True)
    if "backbone" in metrics:
        write_correct(correct, torch.from_numpy(photos.rows("test", labeled=True)), out / CORRECT)
    (out / MAPS).unlink(missing_ok=True)
    if config.maps and not backbone.patches:
        map_rows = test[np.linspace(0, len(test) - 1, min(config.maps, len(test))).astype(int)]
        write_maps(backbone, photos, map_rows, out / MAPS)
    write_config(config, out / "config.json")
    return metrics


def measure_truth(
    vectors: Tensor, photos: Photos, backbone: Backbone, folder: Path, config: EvaluateConfig
) -> dict[str, Any]:
    """Returns "kept" and "dense", each of the backbone and of the baselines, or why they are not measured."""
    truths = read_truths(photos.folder)
    if truths is None or (reason := cannot_score(photos)):
        return {name: {"not_measured": UNKNOWN if truths is None else reason} for name in ("kept", "dense")}
    file = scratch("evaluate", "truth", *_key(photos, folder, config)) / "baselines.json"
    if not file.is_file():
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(
            json.dumps(known_baselines(backbone, photos, truths, config.neighbors, config.seed)), encoding="utf-8"
        )
        part.rename(file)  # complete or absent: another process may read it now
    metrics = json.loads(file.read_text(encoding="utf-8"))
    metrics["backbone"] = measure_known(backbone, photos, truths, config.neighbors, vectors)
    return {name: {model: scores[name] for model, scores in metrics.items()} for name in ("kept", "dense")}


def _key(photos: Photos, folder: Path, config: EvaluateConfig) -> tuple[Any, ...]:
    """Returns what the scores of baselines depend on; folder: of the backbone whose shape the random one has."""
    shape = [digest(folder / name) for name in ("config.json", "preprocessor_config.json")]
    manifest = digest(photos.folder / "manifest.parquet")
    return config.model_dump(mode="json"), shape, manifest, {"bf16": uses_bf16()}


def _start(folder: Path) -> Backbone | None:
    """Returns the published backbone that the one in `folder` was trained from, None if there is none."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if config.get("backbone", {}).get("kind") != "published" or not config["epochs"]:
        return None
    return build(parse(PublishedBackbone, config["backbone"], str(file)))


def cached_baselines(
    photos: Photos, backbone: Backbone, folder: Path, config: EvaluateConfig
) -> tuple[dict[str, Any], dict[str, Correct]]:
    """Returns `baselines`, computed once in each precision for all methods with a backbone of one shape."""
    cache = scratch("evaluate", *_key(photos, folder, config))
    if not (cache / "baselines.json").is_file():
        scores, correct = baselines(photos, backbone, config.neighbors, config.seed)
        part = cache / f"{os.getpid()}"
        write_correct({name: [by_kind] for name, by_kind in correct.items()}, torch.tensor([]), part)
        part.rename(cache / CORRECT)
        part.write_text(json.dumps(scores), encoding="utf-8")
        part.rename(cache / "baselines.json")  # complete or absent: another process may read it now
    correct = {
        name: {kind: x[0] for kind, x in by_kind.items()} for name, by_kind in read_correct(cache / CORRECT)[1].items()
    }
    return json.loads((cache / "baselines.json").read_text(encoding="utf-8")), correct


def neighbors(vectors: Tensor, bank: np.ndarray, queries: np.ndarray, count: int) -> dict[str, dict[str, list[Any]]]:
    """Returns for each query row its `count` nearest rows of the bank, best first, without the row itself.

    row -> `rows` and `cosines`, of centered features.
    """
    bank_vectors, query_vectors = center(vectors[bank], vectors[queries])
    cosines, positions = knn.nearest(query_vectors, bank_vectors, min(count + 1, len(bank)))
    nearest = {}
    for query, rows, similar in zip(queries.tolist(), bank[positions.numpy()].tolist(), cosines.tolist(), strict=True):
        matches = [(row, round(cosine, 4)) for row, cosine in zip(rows, similar, strict=True) if row != query][:count]
        nearest[str(query)] = {"rows": [row for row, _ in matches], "cosines": [cosine for _, cosine in matches]}
    return nearest


def main() -> None:
    parser = backbone_parser(__doc__)
    args = parser.parse_args()
    keep_memory()
    with exit_code("evaluate", parser):
        metrics = evaluate(read_section("evaluate", EvaluateConfig), args.backbone, args.data, args.out)
    for name in ("majority", "pixels", "random", "start", "backbone"):
        scores = dict(metrics.get(name, {}))
        retrieval_scores = scores.pop("retrieval", {})
        scores |= {f"mAP@R {criterion}": values["map_at_r"] for criterion, values in retrieval_scores.items()}
        for kind, accuracy in scores.items():
            print("evaluate: {:9} {:7} {value:.3f} ({low:.3f} to {high:.3f})".format(name, kind, **accuracy))
    for kind in ("knn", "linear") if "blocks" in metrics else ():
        values = ", ".join(f"{block[kind]['value']:.3f}" for block in metrics["blocks"])
        print(f"evaluate: blocks    {kind:7} {values}")
    seeds = metrics["seeds"]
    for name in ("knn", "linear") if seeds["count"] > 1 and "knn" in seeds else ():
        listing = ", ".join(f"{seed_values[name]:.3f}" for seed_values in seeds["each"])
        summary = "{mean:.3f} ± {deviation:.3f}".format(**seeds[name])
        print(f"evaluate: {seeds['count']} seeds   {name:7} {summary} ({listing})")
    if "selection" in metrics:
        selection = metrics["selection"]
        print(f"evaluate: for choosing a method: knn {selection['knn']['value']:.3f} on {selection['on']}")
    if "backbone" in (snapshot := metrics.get("snapshot", {})):
        values = ", ".join(f"{kind} {snapshot['backbone'][kind]['value']:.3f}" for kind in ("knn", "linear"))
        print(f"evaluate: {snapshot['name']}, step {snapshot['step']:,}: {values}")
    for name, reason in metrics.get("not_measured", {}).items():
        print(f"evaluate: not measured: {name}: {reason}")
    print(f"evaluate: effective rank {metrics['health']['effective_rank']:.1f} of {metrics['health']['dimensions']}")


if __name__ == "__main__":
    main()
