"""The configuration of `pretrain`: the settings of one method, from params.yaml, the photos and a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, SerializeAsAny

from components.config import AUTO, InvalidError, Seed, Strict, fill_auto, known_names, parse, settings
from components.data.fields import Field as BatchField
from components.data.photos import Photos
from components.methods import METHODS, MethodConfig, auto
from components.models import published
from components.models.backbone import BackboneConfig, PublishedBackbone, ViTBackbone
from components.training.start import Start, slowed


class PretrainConfig(Strict):
    """The section pretrain.common of params.yaml, overridden by pretrain.METHOD; all other keys are the method's."""

    method: str
    backbone: BackboneConfig
    batch_size: int = Field(ge=2)
    epochs: int = Field(ge=0)  # 0: the backbone is saved as it starts
    seed: Seed = 0
    seeds: int = Field(1, ge=1, le=100)  # trained one after the other: seed, seed + 1, …; other stages use the first
    measured: int = Field(4, ge=0)  # times during a run from random weights; of one that goes on: start.measured
    stop_on_collapse: bool = False  # when it is measured, instead of training on to the end
    start: Start = Start()  # of a published backbone only
    settings: SerializeAsAny[MethodConfig]

    @property
    def goes_on(self) -> bool:
        """True if training goes on from published weights."""
        return isinstance(self.backbone, PublishedBackbone) and self.epochs > 0

    def of_each_seed(self) -> list[PretrainConfig]:
        """Returns the config of each run: one for each seed, and only one if nothing is trained."""
        count = self.seeds if self.epochs else 1
        return [self.model_copy(update={"seed": self.seed + index, "seeds": 1}) for index in range(count)]


def configure(method: str, params: dict[str, Any], data: DataSize | None = None) -> PretrainConfig:
    """Returns the section `pretrain` as the config of one method.

    data: what a setting that says `auto` is computed from.
    Raises ValueError for a name that is not in METHODS, and InvalidError for settings that neither the stage nor the
    method has, for values that are not allowed, and for `auto` without data.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; known: {known_names(method, METHODS)}")
    common, method_section = (settings(params.get(n), f"params.yaml, section pretrain.{n}") for n in ("common", method))

    def where(key: str) -> str:
        return f"params.yaml, section pretrain.{method if key in method_section else 'common'}"

    schema, stage_keys = METHODS[method].config, sorted(set(PretrainConfig.model_fields) - {"method", "settings"})
    problems = [
        f"{where(key)}: {key}: no such setting; known here: {known_names(key, stage_keys)}"
        for key in common
        if key not in method_section and key not in {*stage_keys, *schema.model_fields}
    ]
    if problems:
        raise InvalidError(problems)
    values = _without_auto(_with_checkpoint({**common, **method_section}, where), schema, data, where)
    if not METHODS[method].method.trains:
        values["epochs"] = 0
    method_values = {key: value for key, value in values.items() if key not in stage_keys}
    stage_values = {key: value for key, value in values.items() if key in stage_keys}
    method_settings = parse(schema, method_values, where)
    config = parse(PretrainConfig, {**stage_values, "method": method, "settings": method_settings}, where)
    return config.model_copy(update={"settings": slowed(method_settings, config.start)}) if config.goes_on else config


def configure_for(method: str, params: dict[str, Any], photos: Photos) -> PretrainConfig:
    """Returns `configure` with `auto` computed from the photos that the method trains on."""
    rows = photos.rows("train")
    config = configure(method, params, DataSize.of(photos, rows))
    usable = training_rows(config, photos)
    return config if len(usable) == len(rows) else configure(method, params, DataSize.of(photos, usable))


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
    """Returns `values`; a published backbone gets the settings that its checkpoint decides.

    Raises InvalidError if there is no such checkpoint.
    """
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
    """Returns the rows that the method trains on: the train split's, if need be with a label or text only."""
    rows = photos.rows("train")
    for field in fields(config):
        rows = field.usable(photos, rows)
    return rows


def fields(config: PretrainConfig) -> Sequence[BatchField]:
    """Returns the fields of the method's batch."""
    views: Sequence[BatchField] = METHODS[config.method].method.views(config.settings, config.backbone.image_size)
    return views


def resolve(config: PretrainConfig, photos: Photos, world_size: int) -> PretrainConfig:
    """Returns the config with the settings that depend on the data, such as the number of classes.

    Raises ValueError if method, settings and photos do not fit together.
    """
    method, source = METHODS[config.method].method, f"params.yaml, section pretrain.{config.method}"
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
        raise ValueError(f"{source}: {error}") from None
    return config
