import pickle
import signal
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from flows import process
from flows.process import CommandError, run_streaming

# a child that starts a grandchild in a session of its own, as torchrun does, and prints its process id
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
print(child.pid, flush=True)
{then}
"""
ALONE = 1200  # seconds after which a process that nobody stops ends by itself
SLEEP = f"import time; time.sleep({ALONE})"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ignores SIGTERM', flush=True); time.sleep(1200)"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def has_ended(pid: int) -> bool:
    """Returns True as soon as the process has ended, False after half of the time for which it would run by itself."""
    deadline = time.monotonic() + ALONE / 2
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_lines_are_logged_as_they_are_written(tmp_path: Path) -> None:
    """The process waits after each line until the test has seen it."""
    code = f"""
import pathlib, time
for i in range(3):
    print("line", i, flush=True)
    while not pathlib.Path({str(tmp_path)!r}, f"line {{i}}").exists():
        time.sleep(0.01)
"""
    lines = run_streaming(python(code), lambda line: (tmp_path / line).touch())
    assert lines == ["line 0", "line 1", "line 2"]


def test_both_output_streams_and_each_refresh_of_a_progress_bar_are_lines() -> None:
    lines = run_streaming(
        python(r"import sys; sys.stderr.write('10 %\r20 %\r\n\n'); sys.stderr.flush(); print('über')")
    )
    assert lines == ["10 %", "20 %", "über"]


def test_environment_and_folder(tmp_path: Path) -> None:
    code = "import os, pathlib; print(os.environ['WORD'], pathlib.Path.cwd())"
    assert run_streaming(python(code), cwd=tmp_path, env={"WORD": "snow"}) == [f"snow {tmp_path}"]


def test_a_failed_command_keeps_its_last_lines() -> None:
    with pytest.raises(CommandError, match=r"exit code 3: ") as caught:
        run_streaming(python("[print('line', i) for i in range(100)]; raise SystemExit(3)"), lambda line: None)
    assert caught.value.code == 3
    assert caught.value.tail == [f"line {i}" for i in range(100 - process.TAIL, 100)]
    assert "\nline" not in str(caught.value)  # each line has been logged already
    assert not caught.value.stopped
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # Prefect stores it


def test_stopped_from_another_thread_leaves_no_orphan() -> None:
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        threading.Thread(target=process.kill_all).start()

    with pytest.raises(CommandError) as caught:
        run_streaming(python(PARENT.format(child=SLEEP, then=SLEEP)), stop)
    assert caught.value.stopped
    assert caught.value.code == -signal.SIGTERM
    assert has_ended(int(lines[0]))


def test_an_exception_while_it_runs_leaves_no_orphan() -> None:
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_streaming(python(PARENT.format(child=SLEEP, then=SLEEP)), interrupt)
    assert has_ended(int(lines[0]))


@pytest.mark.parametrize("then", ["", "import os; os.kill(os.getpid(), 9)"], ids=["ends", "is killed"])
def test_a_parent_that_has_ended_leaves_no_orphan(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    monkeypatch.setattr(process, "OUTPUT_SECONDS", 2.0)
    lines: list[str] = []
    started = time.monotonic()
    with pytest.raises(CommandError) if then else nullcontext():
        run_streaming(python(PARENT.format(child=SLEEP, then=then)), lines.append)
    assert has_ended(int(lines[0]))
    assert time.monotonic() - started < ALONE  # it did not wait for the child to end


def test_a_process_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if line == "ignores SIGTERM":
            process.kill_all(grace=0.5)

    with pytest.raises(CommandError) as caught:
        run_streaming(python(PARENT.format(child=STUBBORN, then=SLEEP)), stop)
    assert caught.value.stopped
    assert has_ended(int(lines[0]))
