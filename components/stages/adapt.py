"""Stage: a backbone and labels -> a classifier that stock libraries run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from components.adapters.classifier import LinearHead, save
from components.adapters.classifier import problem as classifier_problem
from components.config import Seed, Strict, read_section, write_config
from components.data.photos import Photos
from components.evaluation.features import features
from components.evaluation.scoring import cannot_score
from components.evaluation.statistics import proportion_with_ci
from components.machine import keep_memory
from components.models.backbone import load
from components.source_files import digest
from components.stages.exit_code import backbone_parser, exit_code
from components.stages.scratch import clear, exclusive, scratch
from components.training import optim
from components.training.loop import accelerator, fit
from components.training.monitor import Run


class AdaptConfig(Strict):
    method: str  # whose backbone; read by dvc.yaml
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(256, ge=1)
    optimizer: optim.Optimizer = optim.AdamW(lr=1e-2, weight_decay=1e-2)
    seed: Seed = 0


def adapt(config: AdaptConfig, folder: Path, data: Path, out: Path) -> dict[str, Any]:
    """Trains a linear head on the frozen backbone; writes model/, metrics.json, log.jsonl and config.json to `out`.

    Returns the metrics.
    """
    photos = Photos(data)
    out.mkdir(parents=True, exist_ok=True)
    write_config(config, out / "config.json")
    if reason := cannot_score(photos) or classifier_problem(load(folder / "backbone")):
        metrics: dict[str, Any] = {"skipped": f"no classifier: {reason}"}
    else:
        metrics = _train(config, folder, photos, out)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def _train(config: AdaptConfig, folder: Path, photos: Photos, out: Path) -> dict[str, Any]:
    acc = accelerator()
    backbone = load(folder / "backbone").as_stock()  # the saved classifier computes this feature
    all_features = features(backbone, photos)
    train, test = (photos.rows(split, labeled=True) for split in ("train", "test"))
    labels, test_labels = photos.labels(train), photos.labels(test)
    train_features, size = all_features[train], min(config.batch_size, len(train))
    per_epoch = len(train) // size

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((config.seed, epoch)).permutation(len(train))
        places = order[place * size : (place + 1) * size]
        return train_features[places], labels[places]

    torch.manual_seed(config.seed)
    head = LinearHead(train_features, len(photos.classes))
    optimizer = optim.build(head, config.optimizer, size)
    backbone_file = folder / "backbone" / "model.safetensors"
    inputs = (config.model_dump(mode="json"), digest(photos.folder / "manifest.parquet"), digest(backbone_file))
    state = scratch("adapt", *inputs)
    length: dict[str, Any] = {"steps": config.epochs * per_epoch, "per_epoch": per_epoch, "batch_size": size}
    run = Run("adapt", **length, log=state / "log.jsonl", state=state, seed=config.seed, micro_batches=1)
    with exclusive(state, acc):
        fit(head, batch, optimizer, config.optimizer, run, acc)
        head.cpu().eval()
        predicted = head.logits(all_features[test]).argmax(1)
        save(out / "model", backbone.cpu(), head.folded(), photos.classes)
        (out / "log.jsonl").write_bytes(run.log.read_bytes())
        clear(state)
    return {
        "accuracy": proportion_with_ci(int((predicted == test_labels).sum()), len(test)),
        "majority": proportion_with_ci(int((test_labels == labels.mode().values).sum()), len(test)),
        "classes": list(photos.classes),
        "confusion": confusion(test_labels, predicted, len(photos.classes)),
    }


def confusion(true: Tensor, predicted: Tensor, classes: int) -> list[list[int]]:
    """Returns counts, a row for each true class and a column for each predicted one."""
    return torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, classes).tolist()


def main() -> None:
    parser = backbone_parser(__doc__)
    args = parser.parse_args()
    keep_memory()
    with exit_code("adapt", parser):
        metrics = adapt(read_section("adapt", AdaptConfig), args.backbone, args.data, args.out)
    if "skipped" in metrics:
        print(f"adapt: {metrics['skipped']}")
        return
    for name in ("majority", "accuracy"):
        print("adapt: {:9} {value:.3f} ({low:.3f} to {high:.3f}) of {of}".format(name, **metrics[name]))


if __name__ == "__main__":
    main()
