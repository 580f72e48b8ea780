"""Runs a command with its output line by line, and ends it together with all processes that it started.

torchrun gives its workers sessions of their own, so killing a process group is not enough; and a killed parent no
longer leads to its children, so walking the process tree is not enough either. Every process therefore carries a mark
of its run in its environment, which children inherit.
"""

import os
import queue
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "SELFSIGHT_RUN"
GRACE = 25.0  # seconds to save a state in; Prefect's runner kills a canceled flow after 30
LEAVE = 3.0  # of them, for a command whose children have gone to end by itself
LINGER = 5.0  # seconds that output may stay open after its process has gone
TAIL = 60  # lines kept

_live: set[str] = set()  # marks of the commands that run now
_stopped: set[str] = set()  # of those that we were asked to end


class CommandError(RuntimeError):
    """A command failed. `tail` has the last lines of its output; `stopped` is True if we ended it ourselves."""

    def __init__(self, argv: Sequence[str], code: int, tail: Sequence[str], stopped: bool = False) -> None:  # noqa: FBT001, FBT002
        super().__init__(argv, code, tail, stopped)  # all of them, so that Prefect can pickle it
        self.argv, self.code, self.tail, self.stopped = list(argv), code, list(tail), stopped

    def __str__(self) -> str:  # without the output, which has been logged line by line
        return f"exit code {self.code}: {' '.join(self.argv)}"

    __repr__ = __str__


def run_streaming(
    argv: Sequence[str],
    log: Callable[[str], object] = print,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """Run `argv`, hand each line of its output to `log` as it comes, and return the last lines.

    Raises CommandError if it fails. However this function is left, nothing that it started is left behind.
    """
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        list(argv),
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {}), MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # which also makes a line of each \r of a progress bar
        encoding="utf-8",
        errors="replace",
        bufsize=1,
        start_new_session=True,  # Ctrl-C in the terminal reaches only us; we end the command
    )
    _live.add(mark)
    tail: deque[str] = deque(maxlen=TAIL)
    try:
        _follow(process, tail, log)
    finally:
        kill_tree(mark)
        _live.discard(mark)
        code = process.wait()
    if code:
        raise CommandError(argv, code, tail, mark in _stopped)
    return list(tail)


def _follow(process: "subprocess.Popen[str]", tail: deque[str], log: Callable[[str], object]) -> None:
    """Log lines until the output ends, or until its process has gone and nobody has written for a while."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    last_output = time.monotonic()
    running = True
    while True:
        try:
            line = lines.get(timeout=0.25)  # short: signals are only handled between two waits
        except queue.Empty:
            if running and process.poll() is not None:
                running, last_output = False, time.monotonic()  # its last lines may still be on their way
            if not running and time.monotonic() - last_output > LINGER:
                return
            continue
        if line is None:
            return
        last_output = time.monotonic()
        if line:
            tail.append(line)
            log(line)


def kill_tree(mark: str, grace: float = GRACE) -> None:
    """End all that bear `mark` within `grace` seconds, the command itself last.

    DVC writes its lock file anew when its stage ends, and interrupted at that leaves it empty, which stops every later
    run. So what it started is asked to stop, and DVC is given a moment to find that out by itself.
    """

    def below() -> set[psutil.Process]:
        family = _family(mark)
        known = {process.pid for process in family}
        return {process for process in family if _parent(process) in known}

    try:
        if _signal_all(below(), psutil.Process.terminate):
            _await_none(below, grace - 2 * LEAVE)
            _await_none(lambda: _family(mark), LEAVE)
        if _signal_all(_family(mark), psutil.Process.terminate):
            _await_none(lambda: _family(mark), LEAVE)
    finally:  # a second Ctrl-C comes through here: no more patience, but no orphans either
        if _signal_all(_family(mark), psutil.Process.kill):
            _await_none(lambda: _family(mark), LEAVE)


def kill_all(grace: float = GRACE) -> None:
    """End every command that is running now, from any thread; they fail as `stopped`."""
    running = list(_live)
    _stopped.update(running)
    for mark in running:
        kill_tree(mark, grace)


def _await_none(processes: Callable[[], set[psutil.Process]], seconds: float) -> None:
    """Not psutil.wait_procs: it would collect our child's exit code, and Popen would then make it 0."""
    until = time.monotonic() + seconds
    while processes() and time.monotonic() < until:
        time.sleep(0.1)


def _family(mark: str) -> set[psutil.Process]:
    """All processes that bear `mark`, and all below them."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if mark in process.environ().values() and process.pid != os.getpid():
                found |= {process, *process.children(recursive=True)}
        except (psutil.Error, OSError):  # gone, or not ours to look at
            continue
    return {process for process in found if _alive(process)}


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_all(processes: set[psutil.Process], action: Callable[[psutil.Process], None]) -> bool:
    """Returns True if there was any process."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            action(process)
    return bool(processes)
