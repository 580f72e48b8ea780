"""Runs a command with its output line by line, and ends it together with all processes that it started.

Killing the process group is not enough, because torchrun starts each worker in a session of its own. Walking the
process tree is not enough, because the children of a killed process are no longer below it. Each command therefore has
a mark, a random environment variable, which all its children inherit.
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
STOP_SECONDS = 25.0  # to save the state and end; Prefect's runner kills a canceled flow after 30
EXIT_SECONDS = 3.0  # part of these, for the command to end by itself after its children have ended
OUTPUT_SECONDS = 5.0  # how long the output may stay open after the command has ended
TAIL = 60  # lines of output kept for CommandError

_running_marks: set[str] = set()  # of the commands that run now
_stopped_marks: set[str] = set()  # of the commands that `kill_all` ended


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
    """Run `argv` and call `log` with each line of its output as it appears. Returns the last lines.

    Raises CommandError if it fails. All processes that it started have ended when this function returns or raises.
    """
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        list(argv),
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {}), MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # with which the \r of a progress bar also ends a line
        encoding="utf-8",
        errors="replace",
        bufsize=1,
        start_new_session=True,  # Ctrl-C in the terminal reaches only this process, which then ends the command
    )
    _running_marks.add(mark)
    tail: deque[str] = deque(maxlen=TAIL)
    try:
        _log_output(process, tail, log)
    finally:
        kill_tree(mark)
        _running_marks.discard(mark)
        code = process.wait()
    if code:
        raise CommandError(argv, code, tail, mark in _stopped_marks)
    return list(tail)


def _log_output(process: "subprocess.Popen[str]", tail: deque[str], log: Callable[[str], object]) -> None:
    """Log lines until the output ends, or until OUTPUT_SECONDS without a line after the command has ended."""
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
                running, last_output = False, time.monotonic()  # its last lines may not be read yet
            if not running and time.monotonic() - last_output > OUTPUT_SECONDS:
                return
            continue
        if line is None:
            return
        last_output = time.monotonic()
        if line:
            tail.append(line)
            log(line)


def kill_tree(mark: str, grace: float = STOP_SECONDS) -> None:
    """End all processes with `mark` within `grace` seconds, the command itself last.

    DVC rewrites its lock file when its stage ends. If it is interrupted then, the file stays empty, and DVC cannot run
    again. So first its children are asked to stop, and DVC has a few seconds to end by itself.
    """

    def children() -> set[psutil.Process]:
        marked = _marked_processes(mark)
        pids = {process.pid for process in marked}
        return {process for process in marked if _parent(process) in pids}

    try:
        if _signal_all(children(), psutil.Process.terminate):
            _wait_until_gone(children, grace - 2 * EXIT_SECONDS)
            _wait_until_gone(lambda: _marked_processes(mark), EXIT_SECONDS)
        if _signal_all(_marked_processes(mark), psutil.Process.terminate):
            _wait_until_gone(lambda: _marked_processes(mark), EXIT_SECONDS)
    finally:  # also after a second Ctrl-C, which ends the waiting: no process may be left
        if _signal_all(_marked_processes(mark), psutil.Process.kill):
            _wait_until_gone(lambda: _marked_processes(mark), EXIT_SECONDS)


def kill_all(grace: float = STOP_SECONDS) -> None:
    """End every command that is running now, in any thread. Each fails with CommandError.stopped set."""
    running = list(_running_marks)
    _stopped_marks.update(running)
    for mark in running:
        kill_tree(mark, grace)


def _wait_until_gone(processes: Callable[[], set[psutil.Process]], seconds: float) -> None:
    """Wait at most `seconds`. psutil.wait_procs would collect a child's exit code, and Popen would then report 0."""
    end = time.monotonic() + seconds
    while processes() and time.monotonic() < end:
        time.sleep(0.1)


def _marked_processes(mark: str) -> set[psutil.Process]:
    """Returns all processes with `mark` in their environment, and all their children."""
    marked: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if mark in process.environ().values() and process.pid != os.getpid():
                marked |= {process, *process.children(recursive=True)}
        except (psutil.Error, OSError):  # it has ended, or belongs to another user
            continue
    return {process for process in marked if _alive(process)}


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
    """Call `action` on each process. Returns True if there was any."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            action(process)
    return bool(processes)
