"""The number of processes and of micro-batches. They depend on the machine and do not change the experiment."""

from __future__ import annotations

import os
import sys

PROCESSES = "SELFSIGHT_PROCESSES"  # depends on the machine, so an environment variable and not a parameter
MICRO_BATCHES = "SELFSIGHT_MICRO_BATCHES"  # in which a process computes its part of a batch (gradient accumulation)


def _count(name: str) -> int:
    text = os.environ.get(name, "1")
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} is {text!r}; allowed: a whole number from 1 on")
    return int(text)


def processes() -> int:
    """Returns how many processes train."""
    return _count(PROCESSES)


def micro_batches() -> int:
    """Returns in how many micro-batches each process computes its part of a batch."""
    return _count(MICRO_BATCHES)


def relaunch(module: str) -> None:
    """Run `python -m module` again under torchrun, if SELFSIGHT_PROCESSES asks for more than one process.

    Returns in the worker processes, and if one process is enough; otherwise torchrun replaces this process.
    It is torchrun on a CPU too, for `accelerate launch --cpu` runs one process without an error.
    """
    count = processes()
    if count == 1 or "LOCAL_RANK" in os.environ:
        return
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    # no elastic restarts: a run that ended is started anew and resumes from the state on disk
    os.execv(sys.executable, [*launcher, "--max-restarts", "0", "--module", module, *sys.argv[1:]])
