"""Adds methods to the list `methods` in params.yaml, which says what DVC has stages for and the report has rows for."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from components.config import PARAMS, known_names, methods
from components.methods import METHODS
from flows.process import CommandError
from flows.stage import caused_by_settings

NAMES = tuple(METHODS)

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[NAMES]  # a dropdown in the Prefect UI


def method_name(text: str) -> str:
    """Returns the name, for argparse. Raises ArgumentTypeError, with a similar name, if it is not in METHODS."""
    if text not in METHODS:
        raise ArgumentTypeError(f"no method {text!r}; known: {known_names(text, METHODS)}")
    return text


@contextmanager
def listed(method: str, log: Callable[[str], object] = print, path: Path = PARAMS) -> Iterator[None]:
    """Add `method` to params.yaml. If its stage then fails because of a setting, restore params.yaml."""
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    add_to_methods(method, log, path)
    after = path.read_text(encoding="utf-8")
    try:
        yield
    except CommandError as error:
        if after != before and caused_by_settings(error) and path.read_text(encoding="utf-8") == after:
            path.write_text(before, encoding="utf-8")
            log(f"{method} was removed from the methods in {path} again; its settings have to be changed first.")
        raise


def add_to_methods(method: str, log: Callable[[str], object] = print, path: Path = PARAMS) -> None:
    """Add `method` to the list in params.yaml if it is not there yet, change no other byte, and log it.

    Raises ValueError for a name that is not in METHODS.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; known: {known_names(method, METHODS)}")
    before, text = methods(path), path.read_text(encoding="utf-8")
    if method in before:
        return
    # not with ruamel.yaml, which would move comments and change the spaces in braces
    changed = _with_item(text, method)
    assert yaml.safe_load(changed)["methods"] == [*before, method]
    path.write_text(changed, encoding="utf-8")
    log(f"{method} is now among the methods in {path}, and so in the report.")


def _with_item(text: str, item: str) -> str:
    """Returns `text` with one more item in its top-level list `methods`, written [in, brackets] or with dashes."""
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
