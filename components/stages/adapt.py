"""Stage: trains a classifier on a backbone, from labels; stock libraries can run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from components.adapters import kinds
from components.adapters.classifier import save
from components.adapters.fine_tuning import lora_problem
from components.adapters.heads import LinearHead
from components.adapters.kinds import Balance, Kind, Recipe
from components.adapters.metrics import measure
from components.adapters.onnx_file import NAME, onnx_problem, write_onnx
from components.adapters.pixel_classifier import PixelClassifier
from components.adapters.saved import write_key
from components.adapters.target import Target, target_of
from components.adapters.task import Task, Trained
from components.adapters.training import train_attention, train_linear, train_mlp, tune
from components.config import Fraction, FractionRange, Seed, Strict, read_section, write_config
from components.data.augment import View
from components.data.photos import Photos
from components.machine import keep_memory
from components.models.backbone import load
from components.source_files import digest
from components.stages.exit_code import backbone_parser, command, exit_code
from components.stages.scratch import clear, exclusive, scratch
from components.training import optim
from components.training.loop import accelerator
from components.training.lora import LoRA


class AdaptConfig(Strict):
    """epochs, batch_size and optimizer are the kind's own where they are None (components/adapters/kinds.py).

    mlp, attention, lora and full have the settings of the kind of that name. crop and flip: of lora and full, the range
    of a random crop's area as a fraction of the photo's, and the probability of mirroring it.
    """

    method: str  # whose backbone; read by dvc.yaml
    kind: Kind = "linear"
    # weights: all classes weigh the same in the loss; where photos have several labels, yes and no of each class do
    balance: Balance = "none"
    epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    optimizer: optim.Optimizer | None = None
    mlp: kinds.MLP = kinds.MLP()
    attention: kinds.Attentive = kinds.Attentive()
    lora: LoRA = LoRA(rank=8, alpha=16.0)
    full: kinds.Full = kinds.Full()
    crop: FractionRange = (0.3, 1.0)
    flip: Fraction = 0.5
    onnx: bool = True  # write the classifier as an ONNX file too
    seed: Seed = 0

    def resolved(self) -> AdaptConfig:
        """Returns these settings with those of the kind in place of None."""
        return self.model_copy(update=kinds.filled(self.kind, dict(self)))

    def recipe(self) -> Recipe:
        return Recipe(**kinds.filled(self.kind, dict(self)))


def adapt(config: AdaptConfig, folder: Path, data: Path, out: Path) -> dict[str, Any]:
    """Trains a classifier on the backbone; writes model/, adapter.json, metrics.json, log.jsonl, config.json to `out`.

    Returns the metrics. Raises ValueError if the backbone cannot be trained in this way.
    """
    photos, config = Photos(data), config.resolved()
    target = target_of(photos)
    out.mkdir(parents=True, exist_ok=True)
    if reason := target.problem():
        metrics: dict[str, Any] = {"skipped": f"no classifier: {reason}"}
    else:
        metrics = _train(config, folder, target, out)
        metrics |= {"seeds": 1, "command": command("adapt", backbone=folder, data=data, out=out)}
    write_config(config, out / "config.json")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def _train(config: AdaptConfig, folder: Path, target: Target, out: Path) -> dict[str, Any]:
    acc = accelerator()
    backbone = load(folder / "backbone").as_stock()  # the saved classifier computes this feature
    if config.kind == "lora" and (reason := lora_problem(backbone)):
        raise ValueError(reason)
    files = (target.photos.folder / "manifest.parquet", folder / "backbone" / "model.safetensors")
    state = scratch("adapt", config.model_dump(mode="json"), *map(digest, files))
    weights = target.class_weights() if config.balance == "weights" else None
    task = Task(target, backbone, weights, config.seed, state, acc)
    with exclusive(state, acc):
        linear, trained = train(config, task)
        temperature, metrics = measure(task, trained, linear)
        shutil.rmtree(out / "model", ignore_errors=True)  # of another kind, which has other files
        classifier, multi_label = trained.model(temperature), target.multi_label
        save(out / "model", trained.backbone.cpu(), classifier.head, target.classes, multi_label=multi_label)
        metrics["onnx"] = _write_onnx(config, classifier, target, out / "model")
        write_key(out, folder / "backbone")
        (out / "log.jsonl").write_bytes(trained.log.read_bytes())
        clear(state)
    return {"kind": config.kind, "balance": config.balance, **metrics}


def _write_onnx(config: AdaptConfig, model: PixelClassifier, target: Target, folder: Path) -> str:
    """Writes the classifier as an ONNX file. Returns its name, or why there is none."""
    if not config.onnx:
        return "left out: the setting onnx is false"
    if reason := onnx_problem(model):
        return f"left out: {reason}"
    write_onnx(model, target.classes, folder / NAME, multi_label=target.multi_label)
    return NAME


def train(config: AdaptConfig, task: Task) -> tuple[Trained, Trained]:
    """Returns the linear classifier on the frozen backbone, which every kind is compared with, and that of the kind."""
    if config.kind == "linear":
        linear = train_linear(task, config.recipe())
        return linear, linear
    linear, recipe = train_linear(task, kinds.RECIPES["linear"]), config.recipe()
    if config.kind == "mlp":
        return linear, train_mlp(task, recipe, config.mlp)
    if config.kind == "attention":
        return linear, train_attention(task, recipe, config.attention)
    assert isinstance(linear.head, LinearHead)
    view = View(task.backbone.config.image_size, crop=config.crop, flip=config.flip)
    return linear, tune(task, linear.head, recipe, config.lora if config.kind == "lora" else config.full, view)


def describe(metrics: dict[str, Any]) -> list[str]:
    """Returns the metrics as lines for a terminal."""
    if "skipped" in metrics:
        return [metrics["skipped"]]
    lines = [f"kind {metrics['kind']}, balance {metrics['balance']}: {metrics['trained_parameters']:,} numbers trained"]
    if "kept_epoch" in metrics:
        start_epoch = metrics["epochs"][0] if metrics["kept_epoch"] == 0 else None
        note = ", which is the linear classifier that it started from" if start_epoch else ""
        lines.append(f"kept: epoch {metrics['kept_epoch']} of {metrics['epochs'][-1]['epoch']}, by val{note}")
    names = {"majority": "majority", "linear": "linear", "accuracy": "accuracy", "mean_average_precision": "mAP"}
    for key, name in names.items():
        if key in metrics:
            lines.append("{:9} {value:.3f} ({low:.3f} to {high:.3f}) of {of}".format(name, **metrics[key]))
    if "chance" in metrics:
        lines.append(f"chance    {metrics['chance']:.3f}, the mean over classes of the share of photos that show it")
    if "balanced_accuracy" in metrics:
        lines.append(f"balanced  {metrics['balanced_accuracy']:.3f}, the mean over classes")
    if "above_linear" in metrics:
        difference = "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**metrics["above_linear"])
        lines.append(f"above linear on the same test photos: {difference}")
    calibration = metrics["calibration"]
    lines.append(
        f"calibration error {calibration['ece_before']:.3f}, {calibration['ece_after']:.3f} after division by the "
        f"temperature {calibration['temperature']:.2f}, fitted on {calibration['fitted_on']}"
    )
    lines.append(f"ONNX: {metrics['onnx']}")
    if "few_labels" not in metrics:
        return [*lines, f"few labels: not measured: {metrics['not_measured']['few_labels']}"]
    few_labels = metrics["few_labels"].items()
    scores = ", ".join(
        "{}: {mean:.3f} ({lowest:.3f} to {highest:.3f})".format(n, **accuracies["linear"])
        for n, accuracies in few_labels
    )
    return [*lines, f"frozen backbone, linear, by labels a class: {scores}"]


def main() -> None:
    parser = backbone_parser(__doc__)
    args = parser.parse_args()
    keep_memory()
    with exit_code("adapt", parser):
        metrics = adapt(read_section("adapt", AdaptConfig), args.backbone, args.data, args.out)
    print(*(f"adapt: {line}" for line in describe(metrics)), sep="\n")


if __name__ == "__main__":
    main()
