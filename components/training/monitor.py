"""The progress line and the log of a run, and the errors that end it: a bad loss, a lack of memory."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from components.training.distributed import MICRO_BATCHES

EXPLODED = 1e6  # the largest first loss is Barlow Twins', a few times the number of its outputs


@dataclass(frozen=True)
class Measurement:
    """A measurement of the features at one point of a run: in words, and as entries of the progress line.

    collapsed: how the features have collapsed and what to try, None if they have not.
    """

    words: str
    entries: dict[str, str]
    collapsed: str | None = None

    def lines(self, run: Run, step: int) -> list[str]:
        """Returns lines for the terminal; flows/training_progress.py reads them too."""
        prefix = f"{run.name}: {100 * step / run.steps:.0f} % of the run, step {step:,}"
        return [f"{prefix}: {words}" for words in (self.words, self.collapsed) if words]


@dataclass(frozen=True)
class Run:
    """The length of a run, and where its log and its state are written."""

    name: str  # shown in the progress line
    steps: int
    batch_size: int  # over all ranks
    log: Path  # JSON lines
    state: Path  # folder of checkpoints
    seed: int = 0
    save_every: int = 500  # steps
    micro_batches: int | None = None  # per batch and process; None: as SELFSIGHT_MICRO_BATCHES says
    per_epoch: int | None = None  # steps, if there are epochs
    measured: tuple[int, ...] = ()  # steps after which `measure` is called, before a state is saved; 0: at the start
    # called in the first process, with the step and that process's losses
    measure: Callable[[int, dict[str, float]], Measurement | None] | None = None
    stop_on_collapse: bool = False


class Monitor:
    """Records losses on the device, and copies them to the log only now and then, since each copy waits for the device.

    bar: the tqdm progress bar that shows the last losses.
    """

    def __init__(self, run: Run, start_step: int, acc: Accelerator, bar: Any) -> None:
        self.run, self.start_step, self.acc, self.bar = run, start_step, acc, bar
        self.seconds_waited, self.seconds_saving, self.seconds_measuring = 0.0, 0.0, 0.0
        self._features: dict[str, str] = {}  # in the progress line: what was last measured
        self.started = self._saved_at = time.monotonic()
        self._recorded: list[tuple[int, dict[str, Tensor]]] = []
        self._last_finite = "no step of this run had a finite loss"
        if acc.is_main_process:
            _trim(run.log, start_step)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time that is spent waiting for data."""
        start = time.monotonic()
        yield
        self.seconds_waited += time.monotonic() - start

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Measure the time that is spent saving the state."""
        start = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self.seconds_saving += self._saved_at - start

    def measure(self, step: int) -> str | None:
        """Measure the features, in the first process, and print the result. Returns how they have collapsed, if so."""
        if not (self.run.measure and self.acc.is_main_process):
            return None
        start = time.monotonic()
        measurement = self.run.measure(
            step, {k: float(v) for _, losses in self._recorded[-1:] for k, v in losses.items()}
        )
        self.seconds_measuring += time.monotonic() - start
        if not measurement:
            return None
        self._features = measurement.entries
        self.bar.write("\n".join(measurement.lines(self.run, step)))  # above the progress line
        sys.stdout.flush()  # at once, also where the output is a pipe
        return measurement.collapsed

    def seconds_since_save(self) -> float:
        """Returns the seconds since the state was last saved."""
        return time.monotonic() - self._saved_at

    def record(self, step: int, losses: dict[str, Tensor]) -> None:
        """Keep the losses of a step, scalars on the device, until the next `log`."""
        self._recorded.append((step, losses))

    def log(self, lr: float) -> None:
        """Write the last recorded losses, as means over ranks, to the progress line and to the log.

        Raises FloatingPointError for the first recorded loss that is not finite or above EXPLODED.
        """
        names = list(self._recorded[-1][1])
        table = torch.stack(
            [torch.stack([losses[name].detach().double() for name in names]) for _, losses in self._recorded]
        )
        rows: list[list[float]] = self.acc.reduce(table, "mean").tolist()
        for (step, _), row in zip(self._recorded, rows, strict=True):
            values = dict(zip(names, row, strict=True))
            if not abs(values["loss"]) < EXPLODED:  # NaN is not below either
                raise FloatingPointError(
                    f"{self.run.name}: loss is {values['loss']:g} at step {step}; {self._last_finite}. The last "
                    f"good state is in {self.run.state}. Try a lower learning rate, a longer warm-up or clipping"
                )
            self._last_finite = f"at step {step} it was {values['loss']:g}"
        last_step = self._recorded[-1][0]
        self._recorded.clear()
        seconds = time.monotonic() - self.started
        rate, per_epoch = (last_step - self.start_step) * self.run.batch_size / seconds, self.run.per_epoch
        line = {
            "step": last_step,
            **({"epoch": last_step / per_epoch} if per_epoch else {}),
            "lr": lr,
            **values,
            "images_per_second": rate,
            "data_wait": self.seconds_waited / seconds,  # a fraction of the time
            "seconds_left": (self.run.steps - last_step) * seconds / (last_step - self.start_step),
            "memory_gib": _memory(self.acc.device) / 2**30,
        }
        entries = {"epoch": f"{last_step / per_epoch:.1f}/{self.run.steps // per_epoch}"} if per_epoch else {}
        entries |= {"loss": f"{values['loss']:.3f}", "img/s": f"{rate:.0f}", "wait": f"{line['data_wait']:.0%}"}
        self.bar.set_postfix(**entries, **self._features, mem=f"{line['memory_gib']:.1f}G", refresh=False)
        if self.acc.is_main_process:
            with self.run.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Print how long the run took."""
        seconds = time.monotonic() - self.started
        self.acc.print(
            f"{self.run.name}: {self.run.steps - self.start_step} steps in {seconds:.0f} s, "
            f"{self.seconds_waited / seconds:.1%} waiting for data, {self.seconds_saving / seconds:.1%} saving, "
            f"{self.seconds_measuring / seconds:.1%} measuring"
        )


@contextlib.contextmanager
def memory_advice(run: Run, world_size: int, micro_batches: int, needs_full_batch: str) -> Iterator[None]:
    """Raises MemoryError that names the settings to change, if the device or the machine has no memory left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # a GPU's OutOfMemoryError is a RuntimeError
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not out_of_memory:
            raise
        per_process = run.batch_size // world_size
        half = max(world_size, run.batch_size // 2 // world_size * world_size)
        split = f"; or {MICRO_BATCHES}={2 * micro_batches}: the same batch in {2 * micro_batches} micro-batches"
        if needs_full_batch:
            split = f"; it cannot be computed in micro-batches: {needs_full_batch}"
        elif run.micro_batches is not None:
            split = ""
        raise MemoryError(
            f"{run.name}: no memory left for a batch_size of {run.batch_size}, {per_process} per process; "
            f"try batch_size: {half}, or a smaller image_size{split}"
        ) from error


def _memory(device: torch.device) -> int:
    """Returns bytes: the peak of all tensors on a GPU; on a CPU, the memory of the process now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _trim(log: Path, step: int) -> None:
    """Remove the lines of steps after `step`, from which the run is resumed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []:
        with contextlib.suppress(ValueError):  # half a line, written when the power failed
            if json.loads(line)["step"] <= step:
                lines.append(line)
    part = log.with_suffix(".tmp")
    part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    part.replace(log)
