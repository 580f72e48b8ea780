"""How many processes are to run, and in how many parts each computes: the machine's business, not the experiment's."""

from __future__ import annotations

import os
import sys

PROCESSES = "SELFSIGHT_PROCESSES"  # the machine's business, so an environment variable and not a parameter
PARTS = "SELFSIGHT_PARTS"  # in how many parts a process computes its share of a batch (gradient accumulation)


def _count(name: str) -> int:
    asked = os.environ.get(name, "1")
    if not asked.isdigit() or int(asked) < 1:
        raise ValueError(f"{name} is {asked!r}; allowed: a whole number from 1 on")
    return int(asked)


def processes() -> int:
    return _count(PROCESSES)


def parts() -> int:
    return _count(PARTS)


def relaunch(module: str) -> None:
    """Run `python -m module` again under torchrun, if SELFSIGHT_PROCESSES asks for more than one process.

    Returns in the worker processes, and where one process is enough; elsewhere it exits with torchrun's code.
    torchrun on CPU and GPU alike: `accelerate launch --cpu` would run one process without a word.
    """
    asked = processes()
    if asked == 1 or "LOCAL_RANK" in os.environ:
        return
    threads = max(1, (os.cpu_count() or 1) // asked)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(asked)]
    # no elastic restarts: the state on disk and a fresh start are the way back
    os.execv(sys.executable, [*launcher, "--max-restarts", "0", "--module", module, *sys.argv[1:]])
