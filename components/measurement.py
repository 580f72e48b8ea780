"""Speedups measured on this machine, and kept in a file of the user's cache, so that every process decides alike."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def setting(name: str, allowed: tuple[str, ...]) -> str:
    """Returns the value of an environment variable, the first of `allowed` where it is not set.

    Raises ValueError if it has another value.
    """
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return value


def processor() -> tuple[str, frozenset[str]]:
    """Returns the CPU's name and flags (instruction sets); where there is no /proc/cpuinfo, no flags."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    name = fields.get("model name") or " ".join(fields.get(key, "") for key in ("CPU implementer", "CPU part")).strip()
    return name or platform.machine(), frozenset((fields.get("flags") or fields.get("Features") or "").split())


@cache
def measured(name: str, measure: Callable[[], float]) -> float:
    """Returns measure(), a speedup, that the first process on this machine keeps in a file of the user's cache.

    So later processes, a resumed run among them, decide by the same number. The key holds what it depends on: CPU,
    torch, and variables that restrict instruction sets; not the number of threads, for `measuring` sets one, and a run
    may be resumed with another number. If no file can be written, each process measures once.
    """
    limits = [os.environ.get(limit) for limit in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    cpu, flags = processor()
    key = json.dumps([cpu, sorted(flags), torch.__version__, limits])
    path = _cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:  # two that measure at once would slow each other
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (recorded := _read_speedup(path)) is not None:
                return recorded
            speedup = measure()
            record = {"speedup": speedup, "cpu": cpu, "torch": torch.__version__}
            part = path.with_suffix(".tmp")
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            part.replace(path)
    except OSError:
        recorded = _read_speedup(path)
        return measure() if recorded is None else recorded
    return speedup


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfsight"
    except RuntimeError:  # the user has no home folder
        return Path(tempfile.gettempdir()) / "selfsight"


def _read_speedup(path: Path) -> float | None:
    """Returns the number in the file, None if there is no file or if it is damaged."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["speedup"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def measuring() -> Iterator[None]:
    """Sets one thread, gradients and no autocast; restores the number of threads and torch's random state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the time of threads that wait in a loop would count
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads)


def best_seconds(*functions: Callable[[], object], rounds: int = 5) -> list[float]:
    """Returns the least CPU time of each function over some rounds.

    The functions alternate, and the time of other processes is not counted, so the ratio holds on a busy machine too.
    """
    best = [float("inf")] * len(functions)
    for function in functions:
        function()  # the first call prepares: it compiles, allocates, reorders
    for _ in range(rounds):
        for index, function in enumerate(functions):
            start = time.process_time()
            function()
            best[index] = min(best[index], time.process_time() - start)
    return best
