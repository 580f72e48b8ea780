"""Ends a stage that cannot go on with a message in place of a traceback, and with a code that says why."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager

from components.stages.scratch import LockError

FAILED, REFUSED = 1, 2  # flows read it: 2 means that settings are refused, as where argparse ends a process


@contextmanager
def exit_code(stage: str, parser: ArgumentParser) -> Iterator[None]:
    """Inside, a ValueError ends the process with code 2, and errors that settings did not cause with code 1.

    Any other exception is our own mistake and keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        parser.exit(REFUSED, f"{stage}: {error}\n")
    except (FloatingPointError, MemoryError, LockError) as error:
        parser.exit(FAILED, f"{stage}: {str(error) or repr(error)}\n")
