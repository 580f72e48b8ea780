"""Runs one flow at a time in a work tree, and ends all processes of a flow that is canceled.

DVC's own locks would make a second run fail rather than wait.
"""

import contextvars
import fcntl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.environment import ROOT  # isort: split

import httpx
from prefect import State, get_client
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled

from flows.process import CommandError, kill_all
from flows.stage import logger

LOCK = Path(".scratch/flows.lock")
WATCH_EVERY = 3.0  # seconds


class _CanceledError(RuntimeError):
    pass


def run_exclusive(work: Callable[[], object]) -> State[None] | None:
    """Run `work` as soon as no other flow runs in this folder. A cancellation ends the processes that it started.

    Returns what the flow returns: None, or the state Cancelled.
    """
    canceled, finished = threading.Event(), threading.Event()
    if flow_run.id and not deployment.id:  # the runner watches a served run, nothing a script
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(_watch, str(flow_run.id), canceled, finished), daemon=True).start()
    try:
        with _lock(ROOT / LOCK, canceled):
            work()
    except (CommandError, _CanceledError):
        if not canceled.is_set():
            raise
        return Cancelled(message="Canceled on request; nothing was left running.")
    finally:
        finished.set()
        kill_all()
    return None


@contextmanager
def _lock(path: Path, canceled: threading.Event) -> Iterator[None]:
    """Hold the lock of this work tree. The system releases it when this process ends, in whatever way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        logged = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not logged:
                    logger().info("Another flow is running in %s; waiting for it.", ROOT)
                    logged = True
            if canceled.is_set():
                raise _CanceledError
            time.sleep(0.5)
        yield


def _watch(run: str, canceled: threading.Event, finished: threading.Event) -> None:
    """End all processes once the run is canceled in the UI, and again if a next stage has begun meanwhile."""
    with get_client(sync_client=True) as client:
        while not finished.wait(WATCH_EVERY):
            try:
                state = client.read_flow_run(uuid.UUID(run)).state
            except httpx.HTTPError:  # the server may come back
                continue
            if state and (state.is_cancelling() or state.is_cancelled()):
                canceled.set()
                kill_all()
