"""Check params.yaml before the first stage runs, so that an error in its last section does not cost a run.

Only the methods listed in `methods` decide. What is wrong in the section of another method is a warning.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from components.config import PARAMS, InvalidError, Strict, known_names, methods, read_section, section, sections
from components.connector.llm import PACKAGED, is_cached, locate_llm
from components.data.photos import Photos
from components.data.sources import source_folder
from components.methods import METHODS, Method
from components.models.backbone import PublishedBackbone, ResNetBackbone, build
from components.models.pretrained import PACKAGED as PACKAGED_CNN
from components.models.resnet import SMALL_IMAGE
from components.stages.adapt import AdaptConfig
from components.stages.answer import AnswerConfig
from components.stages.connect import ConnectConfig
from components.stages.embed import EmbedConfig
from components.stages.evaluate import EvaluateConfig
from components.stages.prepare import DataConfig, PrepareConfig
from components.stages.pretrain_config import DataSize, configure, configure_for, resolve
from components.stages.report import ReportConfig
from components.stages.words import WordsConfig
from components.training.distributed import processes

SECTIONS: dict[str, type[Strict]] = {
    "data": DataConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "adapt": AdaptConfig,
    "embed": EmbedConfig,
    "words": WordsConfig,
    "connect": ConnectConfig,
    "answer": AnswerConfig,
    "report": ReportConfig,
}
LANGUAGE: dict[str, type[ConnectConfig] | type[WordsConfig]] = {"words": WordsConfig, "connect": ConnectConfig}
OTHER_SECTIONS = ("methods", "pretrain")
MANY = 10_000  # stands in for the number of photos before they are prepared


class Findings(NamedTuple):
    """errors: what would stop a stage. warnings: sections of unlisted methods, and what has to be downloaded."""

    errors: list[str]
    warnings: list[str]


def check(path: Path = PARAMS, data: Path | None = None, method: str | None = None) -> Findings:
    """Returns everything that is wrong in params.yaml, each problem once.

    data: the folder written by prepare; with it, settings that only the photos can contradict are checked too.
    method: the only one of the methods in params.yaml to be checked; None: all.
    """
    try:
        method_names, pretrain = methods(path), section("pretrain", path)
        if method not in (None, *method_names):
            raise ValueError(f"{path}, methods: {method!r} is not among them: {known_names(str(method), method_names)}")
        unknown = sorted(sections(path) - {*SECTIONS, *OTHER_SECTIONS})
        photos = Photos(data) if data else None
    except ValueError as error:
        return Findings([str(error)], [])
    size = _expected_size(path)
    names = [*OTHER_SECTIONS, *SECTIONS]
    errors = [f"{path}: no section {name!r}; known: {known_names(name, names)}" for name in unknown]
    other_methods = [str(name) for name in pretrain if name != "common" and name not in method_names]
    warnings: list[str] = []
    checks: list[Callable[[], object]] = [
        *(partial(_check_method, name, pretrain, size, photos) for name in method_names if method in (None, name)),
        *(partial(_check_known, name, path) for name in other_methods),
        *(partial(read_section, name, schema, path) for name, schema in SECTIONS.items()),
        partial(_check_source, path),
        *(partial(_check_trained, stage, method_names, path) for stage in ("adapt", "embed", "words", "connect")),
        partial(_check_squares, method_names, pretrain, size, path),
        partial(_check_low_rank, method_names, pretrain, size, path),
        *(
            partial(_warn_of_language_model, stage, warnings, (method_names, pretrain, size), path)
            for stage in LANGUAGE
        ),
    ]
    for run_check in checks:
        errors += problems(run_check)
    for name in set(other_methods) & set(METHODS):
        prefix = f"params.yaml, section pretrain.{name}:"
        section_problems = problems(partial(configure, name, pretrain, size))
        warnings += [f"{problem} (not in methods)" for problem in section_problems if problem.startswith(prefix)]
    return Findings(list(dict.fromkeys(errors)), sorted(warnings))


def problems(action: Callable[[], object]) -> list[str]:
    """Returns the problems that `action` raises as a ValueError."""
    try:
        action()
    except InvalidError as error:
        return error.problems
    except ValueError as error:
        return [str(error)]
    return []


def _expected_size(path: Path) -> DataSize:
    """Returns what `auto` is computed from until the photos are prepared: many photos of `data.size` pixels."""
    try:
        return DataSize(MANY, read_section("data", DataConfig, path).size)
    except ValueError:  # reported by the check of that section
        return DataSize(MANY, 64)


def _check_method(name: str, pretrain: dict[str, Any], size: DataSize, photos: Photos | None) -> None:
    """Raises ValueError where the settings of a listed method, the networks built of them and the photos disagree."""
    config = configure_for(name, pretrain, photos) if photos else configure(name, pretrain, size)
    if photos:
        config = resolve(config, photos, processes())
    method = METHODS[name].method
    try:
        method.views(config.settings, config.backbone.image_size)
        if photos or method.resolve is Method.resolve:  # without photos, their number of classes is missing
            method(build(config.backbone), config.settings)
    except ValueError as error:
        raise ValueError(f"params.yaml, section pretrain.{name}: {error}") from None


def _check_known(name: str, path: Path) -> None:
    if name not in METHODS:
        raise ValueError(f"{path}, section pretrain: no method {name!r}; known: {known_names(name, METHODS)}")


def _check_source(path: Path) -> None:
    source_folder(str(section("data", path).get("source")))


def _check_trained(stage: str, method_names: list[str], path: Path) -> None:
    method = section(stage, path).get("method")
    if method not in method_names:
        raise ValueError(
            f"{path}, section {stage}: method is {method!r}, which is not among the methods that are trained: "
            f"{', '.join(method_names)}; add it to methods, or choose one of them"
        )


def _warn_of_language_model(
    stage: str, warnings: list[str], pretraining: tuple[list[str], dict[str, Any], DataSize], path: Path
) -> None:
    """Adds a warning if the stage's language model has to be downloaded or its package to be installed.

    Raises ValueError if it cannot be located. A missing package is only a warning, as other stages do not need it.
    """
    method_names, pretrain, size = pretraining
    config = read_section(stage, LANGUAGE[stage], path)
    if config.method not in method_names:
        return  # an error of `_check_trained`
    backbone = configure(config.method, pretrain, size).backbone
    if isinstance(backbone, ResNetBackbone) and backbone.image_size <= SMALL_IMAGE:
        return  # the stage is skipped
    prefix = f"{path}, section {stage}: llm:"
    try:
        location, _ = locate_llm(config.llm)
    except ValueError as error:
        if config.llm != PACKAGED:
            raise ValueError(f"{prefix} {error}") from None
        warnings.append(f"{prefix} {error}")
        return
    if not Path(location).is_dir() and not is_cached(location):
        warnings.append(f"{prefix} {location} is not in the cache of Hugging Face; {stage} will download it")


def _check_squares(method_names: list[str], pretrain: dict[str, Any], size: DataSize, path: Path) -> None:
    """Raises ValueError if connect.image_size is set for a transformer."""
    config = read_section("connect", ConnectConfig, path)
    if config.image_size is None or config.method not in method_names:
        return
    backbone = configure(config.method, pretrain, size).backbone
    if not isinstance(backbone, ResNetBackbone) and backbone.patch_size > 1:
        raise ValueError(
            f"{path}, section connect: image_size is for CNNs only, but the backbone of {config.method} is a "
            "transformer; remove it"
        )


def _check_low_rank(method_names: list[str], pretrain: dict[str, Any], size: DataSize, path: Path) -> None:
    """Raises ValueError if adapt.kind is lora and the backbone surely has no attention."""
    config = read_section("adapt", AdaptConfig, path)
    if config.kind != "lora" or config.method not in method_names:
        return
    backbone = configure(config.method, pretrain, size).backbone
    published = isinstance(backbone, PublishedBackbone) and backbone.source == PACKAGED_CNN
    if isinstance(backbone, ResNetBackbone) or published:
        raise ValueError(
            f"{path}, section adapt: kind lora updates attention layers, but the backbone of {config.method} is a CNN, "
            "which has none; try kind: full"
        )


def starts(path: Path = PARAMS) -> list[str]:
    """Returns a line for each listed method that goes on from published weights: with which rates and momentum."""
    size, pretrain, lines = _expected_size(path), section("pretrain", path), []
    for name in methods(path):
        config = configure(name, pretrain, size)
        if isinstance(config.backbone, PublishedBackbone) and config.goes_on:
            momentum = getattr(config.settings, "momentum", None)  # of the method, at least that of the start
            values = config.start.model_dump() | {"momentum": momentum}
            settings = ", ".join(f"{key}: {value}" for key, value in values.items() if value is not None)
            lines.append(f"pretrain.{name} goes on from {config.backbone.source}, with start: {{{settings}}}")
    return lines


def main() -> None:
    parser = ArgumentParser(prog="selfsight check", description="Check params.yaml before any stage runs.")
    parser.add_argument("--data", type=Path, help="folder written by prepare: also check what depends on its photos")
    parser.add_argument("--method", help="check only this one of the listed methods")
    args = parser.parse_args()
    errors, warnings = check(data=args.data, method=args.method)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    if errors:
        parser.exit(2, "\n".join([*errors, ""]))
    for line in starts():
        print(line)
    print(f"{PARAMS}: no problem found")


if __name__ == "__main__":
    main()
