"""Folders for what a run needs only until it has finished. They lie outside of DVC's outputs, which DVC empties.

A folder is named by a fingerprint of everything that decides the result, so that the same run finds its state again
and a different run starts from the beginning.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from components.source_files import digests

if TYPE_CHECKING:
    from accelerate import Accelerator

SCRATCH = "SELFSIGHT_SCRATCH"
UNKNOWN = -1  # in place of a process id


def scratch(stage: str, *ingredients: object, modules: Iterable[str] = ()) -> Path:
    """Returns a folder for `stage`: the same one exactly if its code and the ingredients are the same.

    ingredients: JSON-serializable; modules: further modules that the stage runs, such as its method's.
    """
    # the code counts too: a run must not begin with the old loss and end with the new one
    code = digests(f"components.stages.{stage}", *modules)
    key = json.dumps([ingredients, code], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = Path(os.environ.get(SCRATCH, ".scratch")).resolve() / stage / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class LockError(RuntimeError):
    """The state of a run cannot be locked, mostly since another process is doing the same run."""


@contextlib.contextmanager
def exclusive(folder: Path, acc: Accelerator) -> Iterator[None]:
    """Keep other processes from using `folder` at the same time. The first process of a run holds the lock for all.

    The system releases the lock when that process ends, however it ends; no child inherits it.
    Raises LockError in all processes of this run if another run holds the lock, or if the system refuses it.
    """
    with contextlib.ExitStack() as stack:
        holder = failure = 0
        if acc.is_main_process:
            try:
                holder = _lock(stack.enter_context((folder / "lock").open("a+")))
            except OSError as error:
                failure = error.errno or errno.EIO
        # the other processes wait here, so the first one must tell them of a failure too
        holder, failure = acc.reduce(torch.tensor([holder, failure], device=acc.device), "sum").tolist()
        if failure:
            raise LockError(f"{folder / 'lock'} cannot be locked: {os.strerror(failure)}")
        if holder:
            process, hint = (f"process {holder}", f" with `kill {holder}`") if holder > 0 else ("another process", "")
            raise LockError(
                f"{process} is doing this same run, with its state in {folder}. To continue here instead, stop it"
                f"{hint}, which saves its state, and start again when it has ended"
            )
        yield


def _lock(file: TextIO) -> int:
    """Locks the file and writes the own process id to it. Returns 0, or the id of the process that has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
    except BlockingIOError:
        file.seek(0)
        return int(file.read() or UNKNOWN)  # empty for a moment after it was locked
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        print(f"{file.name}: this file system has no locks; do not start the same run twice", flush=True)
    return 0


def clear(folder: Path) -> None:
    """Remove the folder of a run that has finished."""
    shutil.rmtree(folder, ignore_errors=True)
