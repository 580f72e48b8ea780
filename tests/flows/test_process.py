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

# a child that starts a grandchild in a session of its own, as torchrun does, and says its process id
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
print(child.pid, flush=True)
{then}
"""
SLEEP = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_lines_come_as_they_are_written() -> None:
    came: list[float] = []
    code = "import time\nfor i in range(3): print('line', i, flush=True); time.sleep(0.4)"
    said = run_streaming(python(code), lambda line: came.append(time.monotonic()))
    assert said == ["line 0", "line 1", "line 2"]
    assert came[-1] - came[0] > 0.6


def test_both_streams_and_each_refresh_of_a_progress_bar() -> None:
    said = run_streaming(python(r"import sys; sys.stderr.write('10 %\r20 %\r\n\n'); sys.stderr.flush(); print('über')"))
    assert said == ["10 %", "20 %", "über"]


def test_environment_and_folder(tmp_path: Path) -> None:
    code = "import os, pathlib; print(os.environ['WORD'], pathlib.Path.cwd())"
    assert run_streaming(python(code), cwd=tmp_path, env={"WORD": "snow"}) == [f"snow {tmp_path}"]


def test_a_failure_shows_the_tail() -> None:
    with pytest.raises(CommandError, match=r"exit code 3: .*\n(.*\n)*line 99") as caught:
        run_streaming(python("[print('line', i) for i in range(100)]; raise SystemExit(3)"), lambda line: None)
    assert caught.value.code == 3
    assert caught.value.tail == [f"line {i}" for i in range(100 - process.TAIL, 100)]
    assert "line 1\n" not in str(caught.value)
    assert "\n" not in repr(caught.value)
    assert not caught.value.stopped
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # Prefect stores it


def test_stopped_from_another_thread_leaves_no_orphan() -> None:
    said: list[str] = []
    threading.Timer(1.5, process.kill_all).start()
    with pytest.raises(CommandError) as caught:
        run_streaming(python(PARENT.format(child=SLEEP, then="time.sleep(60)")), said.append)
    assert caught.value.stopped
    assert caught.value.code == -signal.SIGTERM
    assert gone(int(said[0]))


def test_an_exception_while_it_runs_leaves_no_orphan() -> None:
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_streaming(python(PARENT.format(child=SLEEP, then="time.sleep(60)")), interrupt)
    assert gone(int(said[0]))


@pytest.mark.parametrize("then", ["", "import os; os.kill(os.getpid(), 9)"], ids=["ends", "is killed"])
def test_a_parent_that_has_gone_leaves_no_orphan(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    monkeypatch.setattr(process, "LINGER", 0.5)
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(CommandError) if then else nullcontext():
        run_streaming(python(PARENT.format(child=SLEEP, then=then)), said.append)
    assert gone(int(said[0]))
    assert time.monotonic() - began < 20


def test_who_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if line == "deaf":
            process.kill_all(grace=0.5)

    with pytest.raises(CommandError) as caught:
        run_streaming(python(PARENT.format(child=STUBBORN, then="time.sleep(60)")), stop)
    assert caught.value.stopped
    assert gone(int(said[0]))
