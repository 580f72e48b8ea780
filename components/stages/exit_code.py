"""The command line of a stage: its folders, and a message and a code where it cannot go on, but no traceback."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.stages.scratch import LockError
from components.training.collapse import CollapseError

FAILED, REFUSED = 1, 2  # flows read it: 2 means that settings are refused, as where argparse ends a process


def backbone_parser(description: str | None) -> ArgumentParser:
    """Returns a parser of the folders that a stage after pretrain reads and writes: backbone, data and out."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--backbone", type=Path, required=True, help="folder written by pretrain")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def command(stage: str, **folders: Path) -> str:
    """Returns the command that runs a stage, for metrics.json. folders: by the name of their option."""
    options = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
    return shlex.join(["python", "-m", f"components.stages.{stage}", *options])


@contextmanager
def exit_code(stage: str, parser: ArgumentParser) -> Iterator[None]:
    """Inside, a ValueError ends the process with code 2, and errors that settings did not cause with code 1.

    Any other exception is our own mistake and keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        parser.exit(REFUSED, f"{stage}: {error}\n")
    except (CollapseError, FloatingPointError, MemoryError, LockError) as error:
        parser.exit(FAILED, f"{stage}: {str(error) or repr(error)}\n")
