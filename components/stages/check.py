"""Whether params.yaml is whole, before the first stage: a slip of the pen in its last section should not cost a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from components.config import PARAMS, Strict, methods, read, section, sections
from components.data.sources import named
from components.methods import METHODS, Method
from components.models.backbone import build
from components.stages.adapt import AdaptConfig
from components.stages.answer import AnswerConfig
from components.stages.connect import ConnectConfig
from components.stages.evaluate import EvaluateConfig
from components.stages.prepare import DataConfig, PrepareConfig
from components.stages.pretrain import configure
from components.stages.report import ReportConfig

SECTIONS: dict[str, type[Strict]] = {
    "data": DataConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "adapt": AdaptConfig,
    "connect": ConnectConfig,
    "answer": AnswerConfig,
    "report": ReportConfig,
}

OTHERS = ("methods", "pretrain")


def problems(path: Path = PARAMS) -> list[str]:
    """Everything that is wrong in params.yaml, in words; what only the pictures can tell is not among it."""
    try:
        names, pretrain, unknown = methods(path), section("pretrain", path), sections(path) - {*SECTIONS, *OTHERS}
    except ValueError as error:
        return [str(error)]
    every = [name for name in {**dict.fromkeys(names), **pretrain} if name != "common"]  # each once
    tried: list[Callable[[], Any]] = [partial(_buildable, name, pretrain) for name in every]
    tried += [partial(_written, name, pretrain, path) for name in names]
    tried += [partial(read, name, schema, path) for name, schema in SECTIONS.items()]
    tried.append(partial(_source, path))
    tried += [partial(_trained, name, names, path) for name in ("adapt", "connect")]
    found = [f"{path}: no section {name!r} is known; known: {', '.join([*OTHERS, *SECTIONS])}" for name in unknown]
    for one in tried:
        try:
            one()
        except ValueError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _buildable(method: str, pretrain: dict[str, Any]) -> None:
    """Some settings only the networks made of them refuse; where the data have a say, as they have later."""
    config, kind = configure(method, pretrain), METHODS[method].method
    kind.views(config.settings, config.backbone.image_size)
    if kind.resolve is Method.resolve:
        kind(build(config.backbone), config.settings)


def _written(method: str, pretrain: dict[str, Any], path: Path) -> None:
    """DVC looks for it, whether or not there is something to say in it."""
    if method in METHODS and method not in pretrain:
        raise ValueError(
            f"{path}, section pretrain: it has no {method}, which is among methods; `{method}: {{}}` will do"
        )


def _source(path: Path) -> None:
    named(str(section("data", path).get("source")))


def _trained(stage: str, names: list[str], path: Path) -> None:
    chosen = section(stage, path).get("method")
    if chosen not in names:
        raise ValueError(
            f"{path}, section {stage}: method is {chosen!r}, which is not among the methods that are trained: "
            f"{', '.join(names)}; name it in methods too, or choose one of them"
        )


def main() -> None:
    if found := problems():
        sys.exit("\n".join(found))
    print(f"{PARAMS}: nothing wrong was found")


if __name__ == "__main__":
    main()
