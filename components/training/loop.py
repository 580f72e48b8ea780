"""The one training loop: pretraining, adapters and the connector all go through it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.profiler import record_function

from components.machine import PRECISION, repeat_exactly, uses_bf16
from components.models import winograd
from components.progress import progress
from components.training import checkpoints, distributed, optim
from components.training.monitor import Monitor, Run, memory_advice
from components.training.objective import Objective

SAVE_SECONDS = 300  # no more than that is lost, however slow the steps are
CHECK_EVERY = 10  # steps between looks at the loss and at a request to stop: each look waits for the device


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C came; the state is saved. Exit code 75: try again (sysexits.h, EX_TEMPFAIL)."""

    def __init__(self) -> None:
        super().__init__(75)


def accelerator() -> Accelerator:
    """Returns the accelerator, in bf16 where that is used (see `machine.uses_bf16`); prints what a run depends on.

    Raises RuntimeError if there are fewer than torchrun started: each would train alone, without a word.
    """
    if torch.cuda.is_available():
        repeat_exactly()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _share_arithmetic()
    made = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if uses_bf16() else "no")
    if made.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(f"{made.num_processes} processes see each other, {os.environ['WORLD_SIZE']} were started")
    made.print(
        f"processes: {made.num_processes}, device: {made.device}, precision: {made.mixed_precision}, "
        f"threads: {torch.get_num_threads()}",
        flush=True,
    )
    return made


def _share_arithmetic() -> None:
    """The first process decides on bf16 and on Winograd's filtering for all of them: their machines may differ."""
    state = PartialState(cpu=not torch.cuda.is_available())
    choice = torch.zeros(2, device=state.device)
    if state.is_main_process:
        bf16 = uses_bf16()
        choice = choice.new_tensor([bf16, state.device.type == "cpu" and not bf16 and winograd.enabled()])
    if state.num_processes > 1:
        torch.distributed.broadcast(choice, 0)
    bf16, filtering = choice.tolist()
    os.environ[PRECISION] = "bf16" if bf16 else "fp32"
    os.environ[winograd.WINOGRAD] = "on" if filtering else "off"


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
    Raises FloatingPointError when the loss is no longer finite or a weight to be saved is not; the last good state
    stays in `run.state`. Raises MemoryError, with advice, where there is none left.
    """
    parts = distributed.parts() if run.parts is None else run.parts
    if parts > 1 and objective.needs_full_batch:
        raise ValueError(
            f"{distributed.PARTS} is {parts}, but {run.name} cannot compute a batch in parts: "
            f"{objective.needs_full_batch}; unset it, and take a smaller batch_size or more processes"
        )
    with _StopRequest() as stop, memory_advice(run, acc.num_processes, parts, objective.needs_full_batch):
        objective.to(acc.device).train()
        if acc.mixed_precision == "bf16":  # in fp32 it makes no difference
            nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
        first = checkpoints.restore(run.state, objective, optimizer)
        if first:
            acc.print(f"{run.name}: resumed at step {first} of {run.steps}")
        wrapped, stepper = acc.prepare(objective, optimizer)
        bar = progress(range(first, run.steps), run.name, unit="step", shown=acc.is_main_process)
        monitor = Monitor(run, first, acc, bar)
        with ThreadPoolExecutor(1, "prefetch", initializer=_settle, initargs=(acc.device,)) as pool:
            ahead = pool.submit(load, first)
            for step in bar:
                with monitor.waiting(), record_function("wait for data"):
                    batch = _move(ahead.result(), acc.device)
                done = step + 1
                if first < step < run.steps - 1:
                    ahead = pool.submit(load, done)
                objective.before_step(step / run.steps)
                optim.set_rates(optimizer, settings, step / run.steps)
                torch.manual_seed(
                    (run.seed * 1_000_003 + step) * acc.num_processes + acc.process_index
                )  # no state to save
                monitor.record(done, _gradients(wrapped, batch, parts, acc))
                with record_function("optimizer"):
                    objective.after_backward()
                    optim.clip(optimizer, settings)
                    stepper.step()
                    stepper.zero_grad()
                with record_function("after the step"):
                    objective.after_step()
                if step == first and done < run.steps:  # compiling a backward pass bears no compiled views beside it
                    ahead = pool.submit(load, done)
                due = done % run.save_every == 0
                if done % CHECK_EVERY and done != run.steps and not due:
                    continue
                with record_function("look at the losses"):
                    monitor.look(optimizer.param_groups[0]["lr"])
                stopping, late = _agreed(acc, stop.asked, monitor.unsaved() > SAVE_SECONDS)
                if stopping or late or due:
                    _save(run, done, objective, optimizer, acc, monitor)
                if stopping and done < run.steps:
                    acc.print(f"\n{run.name}: stopped at step {done} of {run.steps}; the same command goes on there")
                    raise Stopped
        monitor.close()


def _agreed(acc: Accelerator, *asked: bool) -> list[bool]:
    """Whether any rank asks, for each question."""
    flags = torch.tensor([float(one) for one in asked], device=acc.device)
    return [count > 0 for count in acc.reduce(flags, "sum").tolist()]


def _save(
    run: Run, step: int, objective: Objective, optimizer: torch.optim.Optimizer, acc: Accelerator, monitor: Monitor
) -> None:
    """By the first process. Raises FloatingPointError in all of them if there is nothing good to save."""
    with monitor.saving():
        bad = checkpoints.save(run.state, step, objective, optimizer) if acc.is_main_process else None
        if any(_agreed(acc, bad is not None)):
            raise FloatingPointError(
                f"{run.name}: not saved at step {step}, for {bad or 'a number of the first process'} is not finite; "
                f"the last good state is in {run.state}. Try a lower learning rate, a longer warm-up or clipping"
            )


def _gradients(wrapped: Any, batch: Any, parts: int, acc: Accelerator) -> dict[str, Tensor]:
    """Backward through the mean over all parts; ranks meet at the last one. What was logged, as means too."""
    means: dict[str, Tensor] = {}
    for number, part in enumerate(_split(batch, parts)):
        with contextlib.nullcontext() if number == parts - 1 else acc.no_sync(wrapped):
            with record_function("forward"):
                losses = wrapped(part)
            with record_function("backward"):
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
    """Remembers that SIGTERM or Ctrl-C came; the loop looks when it is ready to save. A second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number: int, _: object) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _settle(device: torch.device) -> None:
    """In a thread that has just begun: the GPU is this rank's, not the first."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _move(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_move(value, device) for value in batch)
    return batch
