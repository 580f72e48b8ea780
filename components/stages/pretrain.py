"""Stage: pictures -> a backbone, without a label."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field, SerializeAsAny

from components.config import Seed, Strict, parse, section, settings, write
from components.data.fields import make_batch
from components.data.photos import Photos
from components.machine import compile_blocks, keep_memory
from components.methods import METHODS, Method, MethodConfig
from components.models.backbone import BackboneConfig, build
from components.stages.scratch import clear, digest, scratch
from components.training import distributed, optim
from components.training.loop import accelerator, fit
from components.training.monitor import Run


class PretrainConfig(Strict):
    """pretrain.common of params.yaml, overridden by pretrain.METHOD; what is not named here belongs to the method."""

    method: str
    backbone: BackboneConfig
    batch_size: int = Field(ge=2)
    epochs: int = Field(ge=1)
    seed: Seed = 0
    settings: SerializeAsAny[MethodConfig]


def configure(method: str, params: dict[str, Any]) -> PretrainConfig:
    """The section `pretrain` as the config of one method.

    Raises ValueError for a name that is not in METHODS, and for a setting that neither stage nor method knows.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; known: {', '.join(METHODS)}")
    common, special = (settings(params.get(n), f"params.yaml, section pretrain.{n}") for n in ("common", method))
    chosen, known = {**common, **special}, set(PretrainConfig.model_fields) - {"method", "settings"}
    for key in common:
        if key not in {*known, *METHODS[method].config.model_fields}:
            raise ValueError(
                f"params.yaml, section pretrain.common: {key}: no such setting; known here: {', '.join(sorted(known))}"
            )
    own = {key: chosen.pop(key) for key in list(chosen) if key not in known}
    its = parse(METHODS[method].config, own, f"params.yaml, section pretrain.{method}")
    where = f"params.yaml, section pretrain.common or pretrain.{method}"
    return parse(PretrainConfig, {**chosen, "method": method, "settings": its}, where)


def epoch_rows(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of one epoch."""
    return rows[np.random.default_rng((seed, epoch)).permutation(len(rows))]


@dataclass(frozen=True)
class Setup:
    """All that `fit` needs, as the config and the pictures ask for it."""

    config: PretrainConfig  # with what only the data know
    method: Method
    load: Callable[[int], list[torch.Tensor]]  # step -> this rank's batch
    optimizer: torch.optim.Optimizer
    per_epoch: int  # steps


def setup(config: PretrainConfig, data: Path, acc: Accelerator) -> Setup:
    """Raises ValueError where method, settings and pictures do not go together, before anything is trained."""
    photos = Photos(data)
    recipe, world = METHODS[config.method], acc.num_processes
    config = config.model_copy(update={"settings": recipe.method.resolve(config.settings, photos)})
    fields = recipe.method.views(config.settings, config.backbone.image_size)
    rows = photos.rows("train", labeled=any(field.needs_labels for field in fields))
    if config.batch_size % world:
        raise ValueError(f"batch_size {config.batch_size} is not a multiple of the {world} processes")
    if len(rows) < config.batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the {len(rows)} training pictures; "
            f"try pretrain.common.batch_size: {max(2, len(rows) // 4)}"
        )
    try:
        recipe.method.check(config.settings, len(rows), config.batch_size, world)
    except ValueError as error:
        raise ValueError(f"params.yaml, section pretrain.{config.method}: {error}") from None
    per_epoch, share = len(rows) // config.batch_size, config.batch_size // world

    @lru_cache(maxsize=1)  # a permutation of all rows once an epoch, not once a step
    def order(epoch: int) -> np.ndarray:
        return epoch_rows(rows, config.seed, epoch)

    def load(step: int) -> list[torch.Tensor]:
        epoch, place = divmod(step, per_epoch)
        start = place * config.batch_size + acc.process_index * share
        return make_batch(photos, order(epoch)[start : start + share], fields, config.seed, epoch, acc.device)

    if (side := int(photos.shapes[rows].min())) < config.backbone.image_size:
        acc.print(
            f"{config.method}: pictures have {side} pixels on the shorter side, and image_size is "
            f"{config.backbone.image_size}: views are enlarged; try data.size: {config.backbone.image_size * 8 // 7}"
        )
    torch.manual_seed(config.seed)
    method = recipe.method(build(config.backbone), config.settings)
    if acc.device.type == "cuda":
        compile_blocks(method)
    return Setup(config, method, load, optim.build(method, config.settings.optimizer, config.batch_size), per_epoch)


def pretrain(config: PretrainConfig, data: Path, out: Path) -> None:
    """Train on the pictures of the train split; write the backbone, the log and config.json to `out`."""
    acc = accelerator()
    ready = setup(config, data, acc)
    config, optimizer = ready.config, ready.config.settings.optimizer
    state = scratch("pretrain", config.model_dump(mode="json"), digest(data / "manifest.parquet"))
    length = {"steps": config.epochs * ready.per_epoch, "per_epoch": ready.per_epoch, "batch_size": config.batch_size}
    run = Run(config.method, **length, log=state / "log.jsonl", state=state, seed=config.seed)
    fit(ready.method, ready.load, ready.optimizer, optimizer, run, acc)
    if acc.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        ready.method.keep().save(out / "backbone")
        (out / "log.jsonl").write_bytes(run.log.read_bytes())
        write(config, out / "config.json")
        clear(state)
    acc.end_training()


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True, help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    keep_memory()
    try:
        config = configure(given.method, section("pretrain"))
        distributed.relaunch("components.stages.pretrain")
        pretrain(config, given.data, given.out)
    except (ValueError, FloatingPointError, MemoryError) as error:
        parser.exit(2, f"pretrain: {error}\n")


if __name__ == "__main__":
    main()
