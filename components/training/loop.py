"""The training loop: one for pretraining, adapters and the connector."""

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

from components.machine import use_deterministic_algorithms
from components.models import winograd
from components.precision import PRECISION, uses_bf16
from components.progress import progress
from components.training import checkpoints, distributed, micro_batches, optim
from components.training.collapse import CollapseError
from components.training.monitor import Monitor, Run, memory_advice
from components.training.objective import Objective
from components.training.prefetch import prefetch

SAVE_SECONDS = 300  # the state is saved at least this often, so that a power cut loses no more training
CHECK_EVERY = 10  # steps between checks of the losses and of stop requests; each check waits for the device


class Stopped(SystemExit):
    """Ends the process after SIGTERM or Ctrl-C, when the state is saved. Exit code 75: try again (EX_TEMPFAIL)."""

    def __init__(self) -> None:
        super().__init__(75)


def accelerator() -> Accelerator:
    """Returns an Accelerator in bf16 or fp32 (see `uses_bf16`), deterministic on a GPU, and prints its settings.

    Raises RuntimeError if the processes that torchrun started are not connected; otherwise each would train alone.
    """
    if torch.cuda.is_available():
        use_deterministic_algorithms()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _broadcast_arithmetic()
    acc = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if uses_bf16() else "no")
    if acc.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(f"{os.environ['WORLD_SIZE']} processes were started, {acc.num_processes} are connected")
    acc.print(
        f"processes: {acc.num_processes}, device: {acc.device}, precision: {acc.mixed_precision}, "
        f"threads: {torch.get_num_threads()}",
        flush=True,
    )
    return acc


def _broadcast_arithmetic() -> None:
    """Make all processes use the first one's choice of bf16 and of Winograd convolutions, since machines may differ."""
    state = PartialState(cpu=not torch.cuda.is_available())
    choice = torch.zeros(2, device=state.device)
    if state.is_main_process:
        bf16 = uses_bf16()
        choice = choice.new_tensor([bf16, state.device.type == "cpu" and not bf16 and winograd.enabled()])
    if state.num_processes > 1:
        torch.distributed.broadcast(choice, 0)
    use_bf16, use_winograd = choice.tolist()
    os.environ[PRECISION] = "bf16" if use_bf16 else "fp32"
    os.environ[winograd.WINOGRAD] = "on" if use_winograd else "off"


def fit(
    objective: Objective,
    load: Callable[[int], Any],
    optimizer: torch.optim.Optimizer,
    settings: Any,
    run: Run,
    acc: Accelerator,
) -> None:
    """Train up to step `run.steps`, from the newest state in the folder `run.state`, or from step 0 if it has none.

    load: function from a step to this rank's batch, without side effects, so that a resumed run gets the same batches.
    settings: the optim.Optimizer that `optimizer` was built from, for its schedules and its clipping.
    Raises ValueError if micro-batches are set and the objective needs the full batch at once.
    Raises CollapseError if the features have collapsed and the run is to stop then.
    Raises FloatingPointError if the loss or a weight to be saved is not finite; the last good state stays in
    `run.state`. Raises MemoryError, with advice, if there is no memory left.
    """
    num_micro_batches = _count_micro_batches(objective, run)
    with (
        _StopRequest() as request,
        memory_advice(run, acc.num_processes, num_micro_batches, objective.needs_full_batch),
    ):
        objective.to(acc.device).train()
        if acc.mixed_precision == "bf16":  # faster convolutions; in fp32 it makes no difference
            nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
        start_step = checkpoints.restore(run.state, objective, optimizer)
        if start_step:
            acc.print(f"{run.name}: resumed at step {start_step} of {run.steps}")
        wrapped_objective, wrapped_optimizer = acc.prepare(objective, optimizer)
        training = _Training(objective, optimizer, wrapped_objective, wrapped_optimizer, settings, run, acc)
        steps = progress(range(start_step, run.steps), run.name, unit="step", visible=acc.is_main_process)
        monitor = Monitor(run, start_step, acc, steps)
        if start_step in run.measured:  # measured before, if it is not 0
            _measure(training, start_step, monitor)
        with closing(prefetch(load, range(start_step, run.steps), acc.device, monitor)) as batches:
            for step, batch in zip(steps, batches, strict=True):
                monitor.record(step + 1, _train_step(training, step, batch, num_micro_batches))
                if step + 1 in run.measured:
                    _measure(training, step + 1, monitor)
                if _check_is_due(run, step + 1):
                    with record_function("log the losses"):
                        monitor.log(max(group["lr"] for group in optimizer.param_groups))
                    _save_or_stop(training, step + 1, request, monitor)
        monitor.close()


@dataclass(frozen=True)
class _Training:
    """What all steps of a run share: objective and optimizer, and both as accelerate wrapped them (in DDP, in bf16)."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    wrapped_objective: Any
    wrapped_optimizer: Any
    settings: Any
    run: Run
    acc: Accelerator


def _count_micro_batches(objective: Objective, run: Run) -> int:
    num_micro_batches = distributed.micro_batches() if run.micro_batches is None else run.micro_batches
    if num_micro_batches > 1 and objective.needs_full_batch:
        raise ValueError(
            f"{distributed.MICRO_BATCHES} is {num_micro_batches}, but {run.name} needs the full batch at once: "
            f"{objective.needs_full_batch}; unset it, and try a smaller batch_size or more processes"
        )
    return num_micro_batches


def _train_step(training: _Training, step: int, batch: Any, num_micro_batches: int) -> dict[str, Tensor]:
    """Update the weights with one batch. Returns its losses, which stay on the device."""
    objective, acc, run = training.objective, training.acc, training.run
    objective.before_step(step / run.steps)
    optim.set_rates(training.optimizer, training.settings, step / run.steps)
    # The seed, for dropout, is a function of the step, so that no generator's state has to be saved.
    torch.manual_seed((run.seed * 1_000_003 + step) * acc.num_processes + acc.process_index)
    losses = micro_batches.backward(training.wrapped_objective, batch, num_micro_batches, acc)
    with record_function("optimizer"):
        objective.after_backward()
        optim.clip(training.optimizer, training.settings)
        training.wrapped_optimizer.step()
        training.wrapped_optimizer.zero_grad()
    with record_function("after the step"):
        objective.after_step()
    return losses


def _measure(training: _Training, steps_done: int, monitor: Monitor) -> None:
    """Measure the features. Raises CollapseError in all processes if they have collapsed and the run is to stop then.

    The state is saved before; the same run continues only if it is not to stop.
    """
    run, collapsed = training.run, monitor.measure(steps_done)
    if run.stop_on_collapse and any(any_rank(training.acc, collapsed is not None)):
        if steps_done > monitor.start_step:
            _save(training, steps_done, monitor)
        raise CollapseError(
            f"{run.name}: stopped at step {steps_done} of {run.steps}: {collapsed or 'the features have collapsed'}. "
            f"The state is in {run.state}; with stop_on_collapse: false the same settings go on from there"
        )


def _check_is_due(run: Run, steps_done: int) -> bool:
    return steps_done % CHECK_EVERY == 0 or steps_done % run.save_every == 0 or steps_done == run.steps


def _save_or_stop(training: _Training, steps_done: int, request: _StopRequest, monitor: Monitor) -> None:
    """Save the state if a save is due or if any rank has received a stop request. Raises Stopped in the latter case."""
    run, acc = training.run, training.acc
    stop, time_to_save = any_rank(acc, request.received, monitor.seconds_since_save() > SAVE_SECONDS)
    if stop or time_to_save or steps_done % run.save_every == 0:
        _save(training, steps_done, monitor)
    if stop and steps_done < run.steps:
        acc.print(f"\n{run.name}: stopped at step {steps_done} of {run.steps}; the same command continues from there")
        raise Stopped


def _save(training: _Training, steps_done: int, monitor: Monitor) -> None:
    """Save the state, in the first process. Raises FloatingPointError in all processes if a number is not finite."""
    run, acc = training.run, training.acc
    with monitor.saving():
        bad: str | None = None  # the name of a tensor with a number that is not finite
        if acc.is_main_process:
            bad = checkpoints.save(run.state, steps_done, training.objective, training.optimizer)
        if any(any_rank(acc, bad is not None)):
            raise FloatingPointError(
                f"{run.name}: not saved at step {steps_done}: {bad or 'a number of the first process'} is not finite; "
                f"the last good state is in {run.state}. Try a lower learning rate, a longer warm-up or clipping"
            )


def any_rank(acc: Accelerator, *flags: bool) -> list[bool]:
    """Returns, for each flag, True if it is true on at least one rank."""
    counts = acc.reduce(torch.tensor([float(flag) for flag in flags], device=acc.device), "sum")
    return [num_micro_batches > 0 for num_micro_batches in counts.tolist()]


class _StopRequest:
    """Records SIGTERM or Ctrl-C, so that the loop saves its state and stops. A second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _receive(self, number: int, _: object) -> None:
        self.received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
