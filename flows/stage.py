"""Runs DVC stages as Prefect tasks. DVC alone decides whether a stage has to run, so Prefect caches nothing.

flows.environment is imported before prefect, which reads its settings once, when it is imported.
"""

import json
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from flows.environment import ROOT  # isort: split

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from flows.process import CommandError, run_streaming
from flows.training_progress import TrainingProgress

PROCESSES = "SELFSIGHT_PROCESSES"  # as in components.training.distributed, which would import torch
Processes = Annotated[int, Field(ge=1, description="processes that train, one for each GPU")]
RWLOCK = Path(".dvc/tmp/rwlock")
DEFAULT_PROCESSES = int(os.environ.get(PROCESSES, "1"))


def dvc_command(target: str, *, single: bool = False) -> list[str]:
    """Returns the command for one stage: for it alone (`single`), or also for all stages that it needs."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *(["--single-item"] if single else []), target]


def environment(processes: int) -> dict[str, str]:
    """Returns environment variables for a stage.

    They put this Python first on PATH, make progress bars print every ten seconds, and set the number of processes.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {"PATH": path, "TQDM_MININTERVAL": "10", PROCESSES: str(processes)}


def worth_a_retry(error: CommandError) -> bool:
    """Returns True if the same command may succeed the next time.

    That is so if a process was killed by a signal, or stopped after it saved its state (exit code 75, EX_TEMPFAIL).
    Any other failure, such as an unknown setting, would only happen again.
    """
    temporary = [code for code in exit_codes(error) if code < 0 or code == 75 or 128 < code <= 128 + signal.NSIG]
    return bool(temporary) and not error.stopped


def caused_by_settings(error: CommandError) -> bool:
    """Returns True if a stage, or the check before it, refused its settings (exit code 2)."""
    return 2 in exit_codes(error) and not error.stopped


def exit_codes(error: CommandError) -> list[int]:
    """Returns DVC's exit code, which is 255 for every failure, and the stage's own, which DVC and torchrun print."""
    stage_codes = re.findall(r"(?:exited with|exitcode\s*:)\s*(-?\d+)", "\n".join(error.tail))
    return [error.code, *map(int, stage_codes)]


def _retry(_task: object, _run: object, state: State[Any]) -> bool:
    return isinstance(state.data, CommandError) and worth_a_retry(state.data)


@task(
    task_run_name="{target}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,  # training resumes from the state in .scratch, so only the steps since then are repeated
    retry_delay_seconds=10,
    retry_condition_fn=_retry,
)
def repro(target: str, processes: int = DEFAULT_PROCESSES, *, single: bool = False) -> bool:
    """Run `dvc repro` for one stage. Returns True if the stage ran, False if it was up to date.

    Raises CommandError with the last lines of its output if it fails.
    """
    log, has_run = logger(), False
    progress = TrainingProgress(log.warning) if flow_run.id else None

    def log_line(line: str) -> None:
        nonlocal has_run
        has_run = has_run or line.startswith(f"Running stage '{target}'")
        log.info("%s", line)
        if progress:
            progress.read(line)

    remove_corrupt_lock(ROOT / RWLOCK)
    allow_no_git(ROOT)
    run_streaming(dvc_command(target, single=single), log_line, ROOT, environment(processes))
    if not has_run:
        log.info("%s is up to date, so nothing ran; DVC ignores the number of processes and GPUs.", target)
    return has_run


def check() -> None:
    """Check params.yaml. Logs all problems, and raises CommandError if there are any."""
    log = logger()
    command = [sys.executable, "-m", "components.commands.check"]
    run_streaming(command, lambda line: log.info("%s", line), ROOT, environment(1))


def remove_corrupt_lock(lock: Path) -> None:
    """Remove a lock file that is incomplete because DVC was killed while it wrote it. DVC would never run again."""
    for seconds in (1.0, 0.0):  # another DVC may be writing it now: read it again a second later
        if not lock.is_file():
            return
        try:
            json.loads(lock.read_text(encoding="utf-8"))
            return
        except ValueError:
            time.sleep(seconds)
    logger().warning("Removing %s, which is not readable: the run that wrote it was killed.", lock)
    lock.unlink()


def allow_no_git(root: Path) -> None:
    """Configure DVC to run without git if there is none, as in an unpacked zip file."""
    if any((folder / ".git").exists() for folder in (root, *root.parents)):
        return
    config = root / ".dvc" / "config.local"
    if not config.is_file() or "no_scm" not in config.read_text(encoding="utf-8"):
        command = [sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"]
        run_streaming(command, logger().info, root)
        logger().info("There is no git here: `dvc repro` works, `dvc exp` and `dvc diff` do not.")


def logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Returns the logger of the flow run or, outside of a run, an ordinary one."""
    return get_run_logger() if flow_run.id else logging.getLogger("flows")


class HideTraceback(logging.Filter):
    """Hides the traceback of a CommandError, because the cause is in the command's own output above."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], CommandError):
            record.exc_info = None
        return True


for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(HideTraceback())
