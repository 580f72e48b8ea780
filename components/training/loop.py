"""The one training loop, for pretraining, adapters and the connector."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.profiler import record_function

from components.machine import repeat_exactly
from components.models import winograd
from components.precision import PRECISION, uses_bf16
from components.progress import progress
from components.training import checkpoints, distributed, micro_batches, optim
from components.training.monitor import Monitor, Run, memory_advice
from components.training.objective import Objective
from components.training.prefetch import prefetch

SAVE_SECONDS = 300  # at most this much training is lost, however slow the steps are
CHECK_EVERY = 10  # steps between checks of the losses and of stop requests: each check waits for the device


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C was received, and the state is saved. Exit code 75: try again (sysexits.h, EX_TEMPFAIL)."""

    def __init__(self) -> None:
        super().__init__(75)


def accelerator() -> Accelerator:
    """Returns an Accelerator: bf16 or fp32, see `uses_bf16`; deterministic sums on a GPU. Prints its settings.

    Raises RuntimeError if it sees fewer processes than torchrun started: each would train alone, without an error.
    """
    if torch.cuda.is_available():
        repeat_exactly()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _share_arithmetic()
    acc = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if uses_bf16() else "no")
    if acc.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(f"{acc.num_processes} processes see each other, {os.environ['WORLD_SIZE']} were started")
    acc.print(
        f"processes: {acc.num_processes}, device: {acc.device}, precision: {acc.mixed_precision}, "
        f"threads: {torch.get_num_threads()}",
        flush=True,
    )
    return acc


def _share_arithmetic() -> None:
    """Use the first process's choice of bf16 and Winograd convolutions in all processes: machines may differ."""
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
    """Train for `run.steps` steps, starting from the newest state in `run.state` if there is one.

    load: step -> this rank's batch, a pure function, so that a resumed run gets the same batches.
    settings: the optim.Optimizer that `optimizer` was built from, for its schedules and its clipping.
    Raises ValueError if micro-batches are set and the objective needs the full batch at once.
    Raises FloatingPointError if the loss or a weight to be saved is not finite; the last good state stays in
    `run.state`. Raises MemoryError, with advice, if there is no memory left.
    """
    count = _micro_batch_count(objective, run)
    with _StopRequest() as request, memory_advice(run, acc.num_processes, count, objective.needs_full_batch):
        objective.to(acc.device).train()
        if acc.mixed_precision == "bf16":  # in fp32 it makes no difference
            nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
        start_step = checkpoints.restore(run.state, objective, optimizer)
        if start_step:
            acc.print(f"{run.name}: resumed at step {start_step} of {run.steps}")
        wrapped, stepper = acc.prepare(objective, optimizer)
        trained = _Trained(objective, optimizer, wrapped, stepper, settings, run, acc)
        steps = progress(range(start_step, run.steps), run.name, unit="step", shown=acc.is_main_process)
        monitor = Monitor(run, start_step, acc, steps)
        with closing(prefetch(load, range(start_step, run.steps), acc.device, monitor)) as batches:
            for step, batch in zip(steps, batches, strict=True):
                monitor.record(step + 1, _train_step(trained, step, batch, count))
                if _check_is_due(run, step + 1):
                    with record_function("log the losses"):
                        monitor.log(optimizer.param_groups[0]["lr"])
                    _save_or_stop(trained, step + 1, request, monitor)
        monitor.close()


@dataclass(frozen=True)
class _Trained:
    """The objective and its optimizer, as they are and as accelerate wrapped them (in DDP, in bf16)."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    wrapped_objective: Any
    wrapped_optimizer: Any
    settings: Any
    run: Run
    acc: Accelerator


def _micro_batch_count(objective: Objective, run: Run) -> int:
    count = distributed.micro_batches() if run.micro_batches is None else run.micro_batches
    if count > 1 and objective.needs_full_batch:
        raise ValueError(
            f"{distributed.MICRO_BATCHES} is {count}, but {run.name} needs the full batch at once: "
            f"{objective.needs_full_batch}; unset it, and try a smaller batch_size or more processes"
        )
    return count


def _train_step(trained: _Trained, step: int, batch: Any, count: int) -> dict[str, Tensor]:
    """Update the weights by one batch. Returns its losses, still on the device."""
    objective, acc, run = trained.objective, trained.acc, trained.run
    objective.before_step(step / run.steps)
    optim.set_rates(trained.optimizer, trained.settings, step / run.steps)
    # dropout's seed is a function of the step, so that no state of a generator has to be saved
    torch.manual_seed((run.seed * 1_000_003 + step) * acc.num_processes + acc.process_index)
    losses = micro_batches.backward(trained.wrapped_objective, batch, count, acc)
    with record_function("optimizer"):
        objective.after_backward()
        optim.clip(trained.optimizer, trained.settings)
        trained.wrapped_optimizer.step()
        trained.wrapped_optimizer.zero_grad()
    with record_function("after the step"):
        objective.after_step()
    return losses


def _check_is_due(run: Run, done: int) -> bool:
    return done % CHECK_EVERY == 0 or done % run.save_every == 0 or done == run.steps


def _save_or_stop(trained: _Trained, done: int, request: _StopRequest, monitor: Monitor) -> None:
    """Save the state if it is time to or if any rank was asked to stop. Raises Stopped in the latter case."""
    run, acc = trained.run, trained.acc
    stop, late = any_rank(acc, request.received, monitor.unsaved() > SAVE_SECONDS)
    if stop or late or done % run.save_every == 0:
        _save(trained, done, monitor)
    if stop and done < run.steps:
        acc.print(f"\n{run.name}: stopped at step {done} of {run.steps}; the same command continues from there")
        raise Stopped


def _save(trained: _Trained, done: int, monitor: Monitor) -> None:
    """Save the state, in the first process. Raises FloatingPointError in all processes if a number is not finite."""
    run, acc = trained.run, trained.acc
    with monitor.saving():
        bad = checkpoints.save(run.state, done, trained.objective, trained.optimizer) if acc.is_main_process else None
        if any(any_rank(acc, bad is not None)):
            raise FloatingPointError(
                f"{run.name}: not saved at step {done}, for {bad or 'a number of the first process'} is not finite; "
                f"the last good state is in {run.state}. Try a lower learning rate, a longer warm-up or clipping"
            )


def any_rank(acc: Accelerator, *flags: bool) -> list[bool]:
    """Returns for each flag True if it is true on any rank."""
    counts = acc.reduce(torch.tensor([float(flag) for flag in flags], device=acc.device), "sum")
    return [count > 0 for count in counts.tolist()]


class _StopRequest:
    """Records SIGTERM and Ctrl-C, for the loop to stop when its state is saved. A second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _receive(self, number: int, _: object) -> None:
        self.received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
