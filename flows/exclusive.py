"""Runs one flow at a time in this folder, and ends all processes of a flow that is canceled.

Without this lock, DVC's own locks would make a second flow fail; with it, the second flow waits.
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
    """Run `work` as soon as no other flow runs in this folder. If the flow is canceled, end the processes of `work`.

    Returns None, or Prefect's state Cancelled, which the flow returns.
    """
    canceled, finished = threading.Event(), threading.Event()
    if flow_run.id and not deployment.id:  # Prefect's runner notices that a served run is canceled, but not a script's
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
    """Hold the lock of this folder. The system releases it when this process ends, even if it is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        has_logged = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not has_logged:
                    logger().info("Another flow is running in %s; waiting for it.", ROOT)
                    has_logged = True
            if canceled.is_set():
                raise _CanceledError
            time.sleep(0.5)
        yield


def _watch(run: str, canceled: threading.Event, finished: threading.Event) -> None:
    """End all processes when the run is canceled in the UI, and again if another stage has started meanwhile."""
    with get_client(sync_client=True) as client:
        while not finished.wait(WATCH_EVERY):
            try:
                state = client.read_flow_run(uuid.UUID(run)).state
            except httpx.HTTPError:  # the server may be restarting
                continue
            if state and (state.is_cancelling() or state.is_cancelled()):
                canceled.set()
                kill_all()
