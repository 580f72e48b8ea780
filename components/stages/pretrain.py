"""Stage: trains a backbone on photos, without labels."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field, SerializeAsAny

from components.config import (
    AUTO,
    InvalidError,
    Seed,
    Strict,
    fill_auto,
    known_names,
    parse,
    section,
    settings,
    write_config,
)
from components.data.fields import make_batch
from components.data.photos import Photos
from components.evaluation.snapshots import Snapshots
from components.machine import compile_blocks, keep_memory
from components.methods import METHODS, Method, MethodConfig, auto
from components.models import published
from components.models.backbone import Backbone, BackboneConfig, PublishedBackbone, ViTBackbone, build
from components.source_files import digest, weight_files
from components.stages.exit_code import exit_code
from components.stages.scratch import clear, exclusive, scratch
from components.training import distributed, optim
from components.training.loop import accelerator, fit
from components.training.monitor import Run
from components.training.start import Start, rates, slowed


class PretrainConfig(Strict):
    """The section pretrain.common of params.yaml, overridden by pretrain.METHOD; all other keys are the method's."""

    method: str
    backbone: BackboneConfig
    batch_size: int = Field(ge=2)
    epochs: int = Field(ge=0)  # 0: the backbone is saved as it starts
    seed: Seed = 0
    start: Start = Start()  # of a published backbone only
    settings: SerializeAsAny[MethodConfig]

    @property
    def goes_on(self) -> bool:
        """True if training goes on from published weights."""
        return isinstance(self.backbone, PublishedBackbone) and self.epochs > 0


def configure(method: str, params: dict[str, Any], data: DataSize | None = None) -> PretrainConfig:
    """Returns the section `pretrain` as the config of one method.

    data: what a setting that says `auto` is computed from.
    Raises ValueError for a name that is not in METHODS, and InvalidError for settings that neither the stage nor the
    method has, for values that are not allowed, and for `auto` without data.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; known: {known_names(method, METHODS)}")
    common, own = (settings(params.get(n), f"params.yaml, section pretrain.{n}") for n in ("common", method))

    def where(key: str) -> str:
        return f"params.yaml, section pretrain.{method if key in own else 'common'}"

    schema, stage_keys = METHODS[method].config, sorted(set(PretrainConfig.model_fields) - {"method", "settings"})
    problems = [
        f"{where(key)}: {key}: no such setting; known here: {known_names(key, stage_keys)}"
        for key in common
        if key not in own and key not in {*stage_keys, *schema.model_fields}
    ]
    if problems:
        raise InvalidError(problems)
    merged = _without_auto(_with_checkpoint({**common, **own}, where), schema, data, where)
    if not METHODS[method].method.trains:
        merged["epochs"] = 0
    method_values = {key: value for key, value in merged.items() if key not in stage_keys}
    stage_values = {key: value for key, value in merged.items() if key in stage_keys}
    method_settings = parse(schema, method_values, where)
    config = parse(PretrainConfig, {**stage_values, "method": method, "settings": method_settings}, where)
    return config.model_copy(update={"settings": slowed(method_settings, config.start)}) if config.goes_on else config


def configure_for(method: str, params: dict[str, Any], photos: Photos) -> PretrainConfig:
    """Returns `configure` with `auto` computed from the photos that the method trains on."""
    rows = photos.rows("train")
    config = configure(method, params, DataSize.of(photos, rows))
    labeled = training_rows(config, photos)
    return config if len(labeled) == len(rows) else configure(method, params, DataSize.of(photos, labeled))


def _without_auto(
    values: dict[str, Any], schema: type[MethodConfig], data: DataSize | None, where: Callable[[str], str]
) -> dict[str, Any]:
    """Returns `values` with `auto` replaced. Raises InvalidError if there is no data to compute it from."""
    backbone = values.get("backbone")
    image_size = backbone.get("image_size") if isinstance(backbone, dict) else None
    names = [key for key, value in values.items() if value == AUTO] + ["backbone"] * (image_size == AUTO)
    if not names:
        return values
    if data is None:
        raise InvalidError([f"{where(key)}: {key}: auto needs the prepared photos" for key in names])
    if values.get("batch_size") == AUTO:
        values = {**values, "batch_size": auto.batch_size(data.photos)}
    if isinstance(backbone, dict) and image_size == AUTO:
        patch_size = backbone.get("patch_size", ViTBackbone.model_fields["patch_size"].default)
        side = auto.image_size(data.side, patch_size if isinstance(patch_size, int) and patch_size > 0 else 1)
        values = {**values, "backbone": {**backbone, "image_size": side}}
    batch_size = values.get("batch_size")
    return fill_auto(schema, values, auto.TrainingSize(data.photos, batch_size if isinstance(batch_size, int) else 1))


def _with_checkpoint(values: dict[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """Returns `values`, a published backbone's with what its checkpoint decides. Raises InvalidError if it has none."""
    backbone = values.get("backbone")
    if not isinstance(backbone, dict) or backbone.get("kind") != "published":
        return values
    try:
        return {**values, "backbone": published.resolve(backbone)}
    except ValueError as error:
        raise InvalidError([f"{where('backbone')}: {error}"]) from None


@dataclass(frozen=True)
class DataSize:
    """How many photos train, and the pixels of their shorter side as packed, the median."""

    photos: int
    side: int

    @classmethod
    def of(cls, photos: Photos, rows: np.ndarray) -> DataSize:
        return cls(len(rows), int(np.median(photos.shapes[rows].min(1))) if len(rows) else 0)


def training_rows(config: PretrainConfig, photos: Photos) -> np.ndarray:
    """Returns the rows that the method trains on: all of the train split, or those with a label where it needs them."""
    return photos.rows("train", labeled=_needs_labels(config))


def _needs_labels(config: PretrainConfig) -> bool:
    fields = METHODS[config.method].method.views(config.settings, config.backbone.image_size)
    return any(field.needs_labels for field in fields)


def resolve(config: PretrainConfig, photos: Photos, world_size: int) -> PretrainConfig:
    """Returns the config with the settings that depend on the data, such as the number of classes.

    Raises ValueError if method, settings and photos do not fit together.
    """
    method, where = METHODS[config.method].method, f"params.yaml, section pretrain.{config.method}"
    try:
        config = config.model_copy(update={"settings": method.resolve(config.settings, photos)})
        rows = training_rows(config, photos)
        if config.batch_size % world_size:
            raise ValueError(f"batch_size {config.batch_size} is not a multiple of the {world_size} processes")
        if len(rows) < config.batch_size:
            raise ValueError(
                f"batch_size {config.batch_size} is larger than the {len(rows)} training photos; "
                f"try batch_size: auto, or {max(2, len(rows) // 4)}"
            )
        method.check(config.settings, len(rows), config.batch_size, world_size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return config


def epoch_rows(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the rows in the order of one epoch."""
    return rows[np.random.default_rng((seed, epoch)).permutation(len(rows))]


@dataclass(frozen=True)
class Setup:
    """All that `fit` needs for this config and these photos."""

    config: PretrainConfig  # with the settings that depend on the data
    method: Method
    load: Callable[[int], list[torch.Tensor]]  # step -> this rank's batch
    optimizer: torch.optim.Optimizer
    per_epoch: int  # steps


def setup(config: PretrainConfig, data: Path, acc: Accelerator) -> Setup:
    """Build what `fit` needs. Raises ValueError if method, settings and photos do not fit together."""
    photos, recipe = Photos(data), METHODS[config.method]
    config = resolve(config, photos, acc.num_processes)
    fields = recipe.method.views(config.settings, config.backbone.image_size)
    rows = training_rows(config, photos)
    per_epoch, share = len(rows) // config.batch_size, config.batch_size // acc.num_processes

    @lru_cache(maxsize=1)  # a permutation of all rows once an epoch, not once a step
    def order(epoch: int) -> np.ndarray:
        return epoch_rows(rows, config.seed, epoch)

    def load(step: int) -> list[torch.Tensor]:
        epoch, place = divmod(step, per_epoch)
        start = place * config.batch_size + acc.process_index * share
        return make_batch(photos, order(epoch)[start : start + share], fields, config.seed, epoch, acc.device)

    if (side := int(photos.shapes[rows].min())) < config.backbone.image_size:
        acc.print(
            f"{config.method}: photos have {side} pixels on the shorter side, and image_size is "
            f"{config.backbone.image_size}: views are enlarged; try data.size: {config.backbone.image_size * 8 // 7}"
        )
    torch.manual_seed(config.seed)
    backbone = build(config.backbone)
    backbone.fixed_statistics = config.goes_on
    method = recipe.method(backbone, config.settings)
    if acc.device.type == "cuda":
        compile_blocks(method)
    factors = rates(method, config.start) if config.goes_on else {}
    optimizer = optim.build(method, config.settings.optimizer, config.batch_size, factors, config.start.frozen)
    return Setup(config, method, load, optimizer, per_epoch)


def pretrain(config: PretrainConfig, data: Path, out: Path) -> None:
    """Train on the photos of the train split; write the backbone, the log and config.json to `out`.

    A run that goes on from published weights also writes start.json, and of the start and the points where it was
    measured it keeps the best (see Snapshots).
    """
    acc = accelerator()
    if not config.epochs:
        _save(config, _untrained(config, data), out, acc)
        return
    run_setup = setup(config, data, acc)
    config, method, per_epoch = run_setup.config, run_setup.method, run_setup.per_epoch
    inputs = (config.model_dump(mode="json"), digest(data / "manifest.parquet"), _start_digest(config))
    state = scratch("pretrain", *inputs, modules=METHODS[config.method].modules)
    length: dict[str, Any] = {
        "steps": config.epochs * per_epoch,
        "per_epoch": per_epoch,
        "batch_size": config.batch_size,
    }
    run = Run(config.method, **length, log=state / "log.jsonl", state=state, seed=config.seed)
    with exclusive(state, acc):
        snapshots = _snapshots(config, state, Photos(data)) if config.goes_on else None
        if snapshots:
            if acc.is_main_process:  # as published: some methods set another pooling
                snapshots.take(0, build(config.backbone).to(acc.device))
            points = {max(1, round(run.steps * k / config.start.measured)) for k in range(1, config.start.measured + 1)}
            run = replace(run, measured=tuple(points), measure=lambda step: snapshots.take(step, method.keep()))
        fit(method, run_setup.load, run_setup.optimizer, config.settings.optimizer, run, acc)
        if acc.is_main_process:
            kept, summary = snapshots.best() if snapshots else (method.keep(), None)
            _save(config, kept, out, acc)
            (out / "log.jsonl").write_bytes(run.log.read_bytes())
            if summary:
                (out / "start.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
                print(
                    f"{config.method}: {summary['measured']}: {summary['start']:.3f} at the start, "
                    f"{summary['kept']:.3f} after step {summary['kept_step']}, which is kept"
                )
            clear(state)
    acc.end_training()


def _snapshots(config: PretrainConfig, folder: Path, photos: Photos) -> Snapshots:
    return Snapshots(folder, photos, config.seed, ("val",) if _needs_labels(config) else ("train", "val"))


def _untrained(config: PretrainConfig, data: Path) -> Backbone:
    """Returns the backbone as it starts. Raises ValueError if the method refuses it."""
    recipe = METHODS[config.method]
    torch.manual_seed(config.seed)
    settings = recipe.method.resolve(config.settings, Photos(data))
    kept: Backbone = recipe.method(build(config.backbone), settings).keep()
    return kept


def _save(config: PretrainConfig, backbone: Backbone, out: Path, acc: Accelerator) -> None:
    if acc.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        backbone.save(out / "backbone")
        (out / "log.jsonl").write_text("", encoding="utf-8")
        write_config(config, out / "config.json")


def _start_digest(config: PretrainConfig) -> list[str]:
    """Returns the digests of the weights in local folders that training starts or learns from."""
    used = [config.backbone, *dict(config.settings).values()]
    folders = [Path(shape.source).expanduser() for shape in used if isinstance(shape, PublishedBackbone)]
    return [digest(file) for folder in folders for file in weight_files(folder)]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True, help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    keep_memory()
    with exit_code("pretrain", parser):
        config = configure_for(args.method, section("pretrain"), Photos(args.data))
        distributed.relaunch("components.stages.pretrain")
        pretrain(config, args.data, args.out)


if __name__ == "__main__":
    main()
