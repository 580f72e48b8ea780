"""Stage: trains a backbone on photos, by most methods without labels."""

from __future__ import annotations

import contextlib
import shutil
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from components.config import section, write_config
from components.data.fields import make_batch
from components.data.photos import Photos
from components.evaluation.measured import BEST, LAST, MEASURED
from components.evaluation.snapshots import Snapshots
from components.machine import compile_blocks, keep_memory
from components.methods import METHODS, Method
from components.models.backbone import Backbone, PublishedBackbone, build
from components.source_files import digest, weight_digests
from components.stages.exit_code import exit_code
from components.stages.pretrain_config import PretrainConfig, configure_for, fields, resolve, training_rows
from components.stages.scratch import clear, exclusive, scratch
from components.stages.seeds import SEEDS, seed_folder
from components.training import distributed, optim
from components.training.loop import accelerator, any_rank, fit
from components.training.monitor import Measurement, Run
from components.training.start import rates

FINISHED = "finished"  # a folder in the state of a run


def epoch_rows(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the rows in the order of one epoch."""
    return rows[np.random.default_rng((seed, epoch)).permutation(len(rows))]


@dataclass(frozen=True)
class Setup:
    """All that `fit` needs for this config and these photos."""

    photos: Photos
    config: PretrainConfig  # with the settings that depend on the data
    method: Method
    load: Callable[[int], list[torch.Tensor]]  # step -> this rank's batch
    optimizer: torch.optim.Optimizer
    per_epoch: int  # steps


def setup(config: PretrainConfig, data: Path, acc: Accelerator) -> Setup:
    """Build what `fit` needs. Raises ValueError if method, settings and photos do not fit together."""
    photos, recipe = Photos(data), METHODS[config.method]
    config = resolve(config, photos, acc.num_processes)
    batch_fields, rows = fields(config), training_rows(config, photos)
    per_epoch, share = len(rows) // config.batch_size, config.batch_size // acc.num_processes

    @lru_cache(maxsize=1)  # a permutation of all rows once an epoch, not once a step
    def order(epoch: int) -> np.ndarray:
        return epoch_rows(rows, config.seed, epoch)

    def load(step: int) -> list[torch.Tensor]:
        epoch, index = divmod(step, per_epoch)
        start = index * config.batch_size + acc.process_index * share
        return make_batch(photos, order(epoch)[start : start + share], batch_fields, config.seed, epoch, acc.device)

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
    return Setup(photos, config, method, load, optimizer, per_epoch)


def pretrain(config: PretrainConfig, data: Path, out: Path) -> None:
    """Train on the photos of the train split, once for each seed; write backbones, logs and config.json.

    Those of the first seed are in `out`, of the others in out/seeds/SEED. measured.jsonl has the measurements of the
    features during the run. A run that goes on from published weights also writes start.json, and keeps the best of its
    start and its measured points (see Snapshots).
    """
    acc = accelerator()
    if not config.epochs:
        if acc.is_main_process:
            backbone = untrained(config, data)
            _remove_parts(out)
            _save(config.of_each_seed()[0], backbone, out)
        return
    with contextlib.ExitStack() as locks:
        runs = []
        for seed_config in config.of_each_seed():
            if config.seeds > 1:
                acc.print(f"{config.method}: seed {seed_config.seed} of {config.seeds} seeds from {config.seed} on")
            runs.append(_train(seed_config, data, acc, locks))
        if acc.is_main_process:
            _remove_parts(out)
            for run_config, state in runs:
                folder = seed_folder(out, run_config.seed, config.seed)
                shutil.copytree(state / FINISHED, folder, dirs_exist_ok=True)
            write_config(runs[0][0].model_copy(update={"seeds": config.seeds}), out / "config.json")
            for _, state in runs:
                clear(state)
    acc.end_training()


def _train(
    config: PretrainConfig, data: Path, acc: Accelerator, locks: contextlib.ExitStack
) -> tuple[PretrainConfig, Path]:
    """Train with one seed. Returns the resolved config, and the folder of its state; FINISHED in it has the results.

    If this seed was finished before the stage was interrupted, nothing is trained. `locks` keeps the folder locked.
    """
    run_setup = setup(config, data, acc)
    config, method, per_epoch = run_setup.config, run_setup.method, run_setup.per_epoch
    files = sorted({"manifest.parquet", *(name for field in fields(config) for name in field.files)})
    # the state does not depend on stop_on_collapse: a run that it stopped can be continued with false
    settings = config.model_dump(mode="json", exclude={"stop_on_collapse"})
    inputs = (settings, *(digest(data / name) for name in files), start_digests(config))
    state = scratch("pretrain", *inputs, modules=METHODS[config.method].modules)
    locks.enter_context(exclusive(state, acc))
    if any_rank(acc, acc.is_main_process and (state / FINISHED).is_dir())[0]:
        acc.print(f"{config.method}: seed {config.seed} was finished before an interruption")
        return config, state
    length: dict[str, Any] = {
        "steps": config.epochs * per_epoch,
        "per_epoch": per_epoch,
        "batch_size": config.batch_size,
    }
    run = Run(config.method, **length, log=state / "log.jsonl", state=state, seed=config.seed)
    snapshots = _snapshots(config, state, run_setup.photos)

    def measure(step: int, losses: dict[str, float]) -> Measurement:
        as_published = config.goes_on and not step  # some methods set another pooling
        with torch.random.fork_rng():  # `build` draws weights before it reads them
            backbone = build(config.backbone).to(acc.device) if as_published else method.keep()
        return snapshots.take(step, backbone, losses)

    if times := config.start.measured if config.goes_on else config.measured:
        points = {0, *(max(1, round(run.steps * k / times)) for k in range(1, times + 1))}
        run = replace(run, measured=tuple(points), measure=measure, stop_on_collapse=config.stop_on_collapse)
    fit(method, run_setup.load, run_setup.optimizer, config.settings.optimizer, run, acc)
    acc.free_memory()  # otherwise it keeps this seed's modules while the next one trains
    if acc.is_main_process:
        part = state / f"{FINISHED}.part"
        shutil.rmtree(part, ignore_errors=True)
        _save(config, method.keep(), part)
        (part / "log.jsonl").write_bytes(run.log.read_bytes())
        for line in snapshots.write(part):
            print(f"{config.method}: {line}")
        part.rename(state / FINISHED)
    return config, state


def _snapshots(config: PretrainConfig, folder: Path, photos: Photos) -> Snapshots:
    labels_seen = any(field.shows_labels for field in fields(config))
    return Snapshots(folder, photos, config.seed, labels_seen=labels_seen, goes_on=config.goes_on)


def untrained(config: PretrainConfig, data: Path) -> Backbone:
    """Returns the backbone as it starts. Raises ValueError if the method refuses it."""
    recipe = METHODS[config.method]
    torch.manual_seed(config.seed)
    settings = recipe.method.resolve(config.settings, Photos(data))
    backbone: Backbone = recipe.method(build(config.backbone), settings).keep()
    return backbone


def _remove_parts(out: Path) -> None:
    """Remove what an earlier run may have left and this one may not write."""
    for name in (SEEDS, BEST, LAST):
        shutil.rmtree(out / name, ignore_errors=True)


def _save(config: PretrainConfig, backbone: Backbone, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    backbone.save(out / "backbone")
    for name in ("log.jsonl", MEASURED):
        (out / name).write_text("", encoding="utf-8")
    write_config(config, out / "config.json")


def start_digests(config: PretrainConfig) -> dict[str, str]:
    """Returns the digests of the weights in local folders that training starts or learns from."""
    values = [config.backbone, *dict(config.settings).values()]
    return weight_digests(value.source for value in values if isinstance(value, PublishedBackbone))


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
