"""The one training loop: pretraining, adapters and the connector all go through it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from components.progress import progress
from components.training import checkpoints, distributed, optim
from components.training.objective import Objective

CPUINFO = Path("/proc/cpuinfo")
CHECK_EVERY = 10  # steps between looks at the loss and at a request to stop: each look waits for the device


@dataclass(frozen=True)
class Run:
    """How long, and what is kept on the way."""

    name: str  # shown in the progress line
    steps: int
    batch_size: int  # over all ranks
    log: Path  # JSON lines
    state: Path  # folder of checkpoints
    seed: int = 0
    save_every: int = 500  # steps
    parts: int | None = None  # in which a batch is computed, one after the other; None: as the machine asks for


class Stopped(SystemExit):
    """SIGTERM came; the state is saved. Exit code 75: try again (sysexits.h, EX_TEMPFAIL)."""

    def __init__(self) -> None:
        super().__init__(75)


def accelerator() -> Accelerator:
    """bf16 where the device multiplies in it, else fp32; says how many processes there really are.

    Raises RuntimeError if there are fewer than torchrun started: each would train alone, without a word.
    """
    made = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if _has_bf16() else "no")
    if made.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(f"{made.num_processes} processes see each other, {os.environ['WORLD_SIZE']} were started")
    made.print(
        f"processes: {made.num_processes}, device: {made.device}, precision: {made.mixed_precision}, "
        f"threads: {torch.get_num_threads()}",
        flush=True,
    )
    return made


def fit(
    objective: Objective,
    load: Callable[[int], Any],
    optimizer: torch.optim.Optimizer,
    settings: Any,
    run: Run,
    acc: Accelerator,
) -> None:
    """Train for `run.steps`, from the newest state in `run.state` if there is one.

    load: step -> this rank's batch, a pure function, so that a resumed run sees what it would have seen.
    settings: the optim.Optimizer that `optimizer` was built from, for its schedules and its clipping.
    Raises ValueError if a batch is to be computed in parts and must not be.
    Raises FloatingPointError when the loss is no longer finite; the last good state stays in `run.state`.
    """
    parts = distributed.parts() if run.parts is None else run.parts
    if parts > 1 and objective.coupled:
        raise ValueError(
            f"{distributed.PARTS} is {parts}, but {run.name} cannot compute a batch in parts: {objective.coupled}; "
            f"unset it, and take a smaller batch_size or more processes"
        )
    objective.to(acc.device).train()
    first = checkpoints.restore(run.state, objective, optimizer)
    if first:
        acc.print(f"{run.name}: resumed at step {first} of {run.steps}")
    if acc.is_main_process:
        _trim(run.log, first)
    wrapped, stepper = acc.prepare(objective, optimizer)
    waited, started, stop = 0.0, time.monotonic(), _StopRequest()
    bar = progress(range(first, run.steps), run.name, unit="step", shown=acc.is_main_process)
    with ThreadPoolExecutor(1, "prefetch") as pool:
        ahead = pool.submit(load, first)
        for step in bar:
            before = time.monotonic()
            batch = _move(ahead.result(), acc.device)
            waited += time.monotonic() - before
            done = step + 1
            if done < run.steps:
                ahead = pool.submit(load, done)
            objective.before_step(step / run.steps)
            optim.set_rates(optimizer, settings, step / run.steps)
            torch.manual_seed((run.seed * 1_000_003 + step) * acc.num_processes + acc.process_index)  # no state to save
            losses = _gradients(wrapped, batch, parts, acc)
            objective.after_backward()
            optim.clip(optimizer, settings)
            stepper.step()
            stepper.zero_grad()
            objective.after_step()
            if done % CHECK_EVERY and done != run.steps:
                continue
            values = {name: float(acc.reduce(value.detach(), "mean")) for name, value in losses.items()}
            _must_be_finite(values["loss"], done, run)
            stopping = bool(acc.reduce(torch.tensor(float(stop.asked), device=acc.device), "sum"))
            rate = (done - first) * run.batch_size / (time.monotonic() - started)
            bar.set_postfix(loss=f"{values['loss']:.3f}", img_s=f"{rate:.0f}", refresh=False)
            if acc.is_main_process:
                line = {"step": done, "lr": optimizer.param_groups[0]["lr"], **values, "images_per_second": rate}
                with run.log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(line) + "\n")
                if stopping or done % run.save_every == 0:
                    checkpoints.save(run.state, done, objective, optimizer)
            if stopping and done < run.steps:
                acc.wait_for_everyone()
                raise Stopped
    stop.close()
    seconds = time.monotonic() - started
    acc.print(f"{run.name}: {run.steps - first} steps in {seconds:.0f} s, {waited / seconds:.1%} waiting for data")


def _gradients(wrapped: Any, batch: Any, parts: int, acc: Accelerator) -> dict[str, Tensor]:
    """Backward through the mean over all parts; ranks meet at the last one. What was logged, as means too."""
    means: dict[str, Tensor] = {}
    for number, part in enumerate(_split(batch, parts)):
        with contextlib.nullcontext() if number == parts - 1 else acc.no_sync(wrapped):
            losses = wrapped(part)
            acc.backward(losses["loss"] / parts)
        for name, value in losses.items():
            means[name] = means.get(name, 0.0) + value.detach() / parts
    return means


def _split(batch: Any, parts: int) -> list[Any]:
    """The batch as `parts` smaller ones, each tensor cut along its first axis."""
    if parts == 1:
        return [batch]
    if isinstance(batch, Tensor):
        if len(batch) % parts:
            raise ValueError(f"a batch of {len(batch)} a process cannot be split in {parts} equal parts")
        return list(batch.chunk(parts))
    if isinstance(batch, dict):
        return [dict(zip(batch, values, strict=True)) for values in _split(list(batch.values()), parts)]
    return [list(values) for values in zip(*(_split(value, parts) for value in batch), strict=True)]


class _StopRequest:
    """Remembers that SIGTERM came; the loop looks when it is ready to save."""

    def __init__(self) -> None:
        self.asked = False
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def close(self) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _has_bf16() -> bool:
    """Emulated bf16 is hundreds of times slower than fp32, so ask for units that multiply in it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return "amx_bf16" in CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _move(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_move(value, device) for value in batch)
    return batch


def _trim(log: Path, step: int) -> None:
    """Forget lines past the state that is resumed from."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _must_be_finite(loss: float, step: int, run: Run) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{run.name}: loss is {loss} at step {step}; the last good state is in {run.state}. "
            "Try a lower learning rate, a longer warm-up or gradient clipping."
        )
