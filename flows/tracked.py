"""A method is in the report as soon as params.yaml names it, and to pretrain one is to want it there."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from components.config import PARAMS, methods
from components.methods import METHODS

NAMES = tuple(METHODS)

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[NAMES]  # what makes a dropdown of it in the Prefect UI


def tracked(path: Path = PARAMS) -> list[str]:
    """The methods that DVC has stages for."""
    return methods(path)


def track(method: str, log: Callable[[str], object] = print, path: Path = PARAMS) -> None:
    """Have stages for `method`: name it in params.yaml if it is not there yet, change no other byte, and say so.

    Raises ValueError for a name that is not in METHODS.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; known: {', '.join(METHODS)}")
    before, text = methods(path), path.read_text(encoding="utf-8")
    if method in before:
        return
    # not a round trip through ruamel.yaml, which moves comments and re-spaces what is in braces
    changed = _with_item(text, method)
    assert yaml.safe_load(changed)["methods"] == [*before, method]
    path.write_text(changed, encoding="utf-8")
    log(f"{method} is now among the methods in {path}, and so in the report.")


def _with_item(text: str, item: str) -> str:
    """`text` with one more item in its top-level list `methods`, be it [in, brackets] or with dashes."""
    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    node = next(value for key, value in root.value if key.value == "methods")
    last = node.value[-1].end_mark.index if node.value else node.start_mark.index + 1
    if node.flow_style:
        return f"{text[:last]}{', ' if node.value else ''}{item}{text[last:]}"
    start = node.value[-1].start_mark
    dash = text[start.index - start.column : start.index]  # "  - ", as in the line above
    end = text.find("\n", last)
    end = len(text) if end < 0 else end
    return f"{text[:end]}\n{dash}{item}{text[end:]}"
