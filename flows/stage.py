"""Whether a stage has anything to do is for DVC alone to decide, so nothing here is cached."""

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

PROCESSES = "SELFSIGHT_PROCESSES"  # as in components.training.distributed, which would import torch
Processes = Annotated[int, Field(ge=1, description="processes that train, one for each GPU")]
RWLOCK = Path(".dvc/tmp/rwlock")
DEFAULT_PROCESSES = int(os.environ.get(PROCESSES, "1"))


def argv(target: str, *, single: bool = False) -> list[str]:
    """The command for one stage. Alone (`single`), or with all that it needs."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *(["--single-item"] if single else []), target]


def environment(processes: int) -> dict[str, str]:
    """What a stage finds: our own python first on the path, and progress bars that print a line every ten seconds."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {"PATH": path, "TQDM_MININTERVAL": "10", PROCESSES: str(processes)}


def worth_a_retry(error: CommandError) -> bool:
    """Whether it may go better the second time: killed by a signal, or stopped with a state saved (75, EX_TEMPFAIL).

    What a stage says with any other code, such as of a setting that does not exist, it would say again. DVC's own code
    is 255 in any case; the stage's is in what DVC and torchrun print.
    """
    said = [int(code) for code in re.findall(r"(?:exited with|exitcode\s*:)\s*(-?\d+)", "\n".join(error.tail))]
    again = [code for code in (error.code, *said) if code < 0 or code == 75 or 128 < code <= 128 + signal.NSIG]
    return bool(again) and not error.stopped


def _retry(_task: object, _run: object, state: State[Any]) -> bool:
    return isinstance(state.data, CommandError) and worth_a_retry(state.data)


@task(
    task_run_name="{target}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,  # from the state in .scratch, so at most the steps since the last one are lost
    retry_delay_seconds=10,
    retry_condition_fn=_retry,
)
def repro(target: str, processes: int = DEFAULT_PROCESSES, *, single: bool = False) -> bool:
    """`dvc repro` for one stage. Whether it had to run.

    Raises CommandError with the tail of its output if it fails.
    """
    log, ran = logger(), False

    def tell(line: str) -> None:
        nonlocal ran
        ran = ran or line.startswith(f"Running stage '{target}'")
        log.info("%s", line)

    mend(ROOT / RWLOCK)
    run_streaming(argv(target, single=single), tell, ROOT, environment(processes))
    if not ran:
        log.info("%s is up to date, so nothing ran; DVC does not count processes or GPUs.", target)
    return ran


def check() -> None:
    """Whether params.yaml is whole. Raises CommandError with all that is wrong if it is not."""
    log = logger()
    command = [sys.executable, "-m", "components.commands.check"]
    run_streaming(command, lambda line: log.info("%s", line), ROOT, environment(1))


def mend(lock: Path) -> None:
    """Remove a lock file of DVC's that it was killed while writing: it would refuse to run until somebody did."""
    for patience in (1.0, 0.0):  # it may also be being written just now
        if not lock.is_file():
            return
        try:
            json.loads(lock.read_text(encoding="utf-8"))
            return
        except ValueError:
            time.sleep(patience)
    logger().warning("%s is not readable, left so by a run that was killed; removing it.", lock)
    lock.unlink()


def logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """The run's own log; outside of a run, a plain one."""
    return get_run_logger() if flow_run.id else logging.getLogger("flows")


class _Brief(logging.Filter):
    """A command that fails has said why; sixty lines of how we called it would hide that."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], CommandError):
            record.exc_info = None
        return True


for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_Brief())
