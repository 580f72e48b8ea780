"""In one work tree, one flow at a time; and when it is canceled, all that it started ends with it.

DVC's own locks make a second run fail rather than wait.
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


def take(work: Callable[[], object]) -> State[None] | None:
    """Do `work` when no other flow works in this folder, and see to it that a cancellation reaches what it starts.

    What the flow returns: nothing, or the state Cancelled.
    """
    canceled, over = threading.Event(), threading.Event()
    if flow_run.id and not deployment.id:  # a served run is watched over by its runner, and a script by nobody
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(_watch, str(flow_run.id), canceled, over), daemon=True).start()
    try:
        with _alone(ROOT / LOCK, canceled):
            work()
    except (CommandError, _CanceledError):
        if not canceled.is_set():
            raise
        return Cancelled(message="Canceled on request; nothing was left running.")
    finally:
        over.set()
        kill_all()
    return None


@contextmanager
def _alone(path: Path, canceled: threading.Event) -> Iterator[None]:
    """Hold the lock of this work tree. The system takes it back when we die, however we die."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    logger().info("Another flow is at work in %s; waiting for it.", ROOT)
                    told = True
            if canceled.is_set():
                raise _CanceledError
            time.sleep(0.5)
        yield


def _watch(run: str, canceled: threading.Event, over: threading.Event) -> None:
    """End what runs once somebody cancels the run in the UI, and again should a next stage have begun meanwhile."""
    with get_client(sync_client=True) as client:
        while not over.wait(WATCH_EVERY):
            try:
                state = client.read_flow_run(uuid.UUID(run)).state
            except httpx.HTTPError:  # the server may come back
                continue
            if state and (state.is_cancelling() or state.is_cancelled()):
                canceled.set()
                kill_all()
