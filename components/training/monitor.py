"""What is seen of a run while it runs: the line on the screen, the log, and that it has to stop."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from components.training.distributed import PARTS

EXPLODED = 1e6  # the largest at a start is Barlow Twins', a few times its outputs


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
    per_epoch: int | None = None  # steps, where there are epochs


class Monitor:
    """Losses stay on the device until `look`, for each look waits for it."""

    def __init__(self, run: Run, first: int, acc: Accelerator, bar: Any) -> None:
        self.run, self.first, self.acc, self.bar = run, first, acc, bar
        self.waited, self.saving_took = 0.0, 0.0
        self.started = self._saved_at = time.monotonic()
        self._held: list[tuple[int, dict[str, Tensor]]] = []
        self._finite = "no step of this run had a finite one"
        if acc.is_main_process:
            _trim(run.log, first)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For data."""
        before = time.monotonic()
        yield
        self.waited += time.monotonic() - before

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self.saving_took += self._saved_at - before

    def unsaved(self) -> float:
        """Seconds since the last state was saved."""
        return time.monotonic() - self._saved_at

    def record(self, step: int, losses: dict[str, Tensor]) -> None:
        self._held.append((step, losses))

    def look(self, lr: float) -> None:
        """Means over ranks of what was noted; the last of them on the screen and into the log.

        Raises FloatingPointError at the first loss that is not finite or has exploded.
        """
        names = list(self._held[-1][1])
        table = torch.stack(
            [torch.stack([losses[name].detach().double() for name in names]) for _, losses in self._held]
        )
        rows: list[list[float]] = self.acc.reduce(table, "mean").tolist()
        for (step, _), row in zip(self._held, rows, strict=True):
            values = dict(zip(names, row, strict=True))
            if not abs(values["loss"]) < EXPLODED:  # NaN is not below either
                raise FloatingPointError(
                    f"{self.run.name}: loss is {values['loss']:g} at step {step}; {self._finite}. The last good state "
                    f"is in {self.run.state}. Try a lower learning rate, a longer warm-up or gradient clipping"
                )
            self._finite = f"at step {step} it was {values['loss']:g}"
        done = self._held[-1][0]
        self._held.clear()
        seconds = time.monotonic() - self.started
        rate, per_epoch = (done - self.first) * self.run.batch_size / seconds, self.run.per_epoch
        said = {
            "step": done,
            **({"epoch": done / per_epoch} if per_epoch else {}),
            "lr": lr,
            **values,
            "images_per_second": rate,
            "data_wait": self.waited / seconds,  # a share of the time
            "seconds_left": (self.run.steps - done) * seconds / (done - self.first),
            "memory_gib": _memory(self.acc.device) / 2**30,
        }
        shown = {"epoch": f"{done / per_epoch:.1f}/{self.run.steps // per_epoch}"} if per_epoch else {}
        shown |= {"loss": f"{values['loss']:.3f}", "img/s": f"{rate:.0f}", "wait": f"{said['data_wait']:.0%}"}
        self.bar.set_postfix(**shown, mem=f"{said['memory_gib']:.1f}G", refresh=False)
        if self.acc.is_main_process:
            with self.run.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(said) + "\n")

    def close(self) -> None:
        seconds = time.monotonic() - self.started
        self.acc.print(
            f"{self.run.name}: {self.run.steps - self.first} steps in {seconds:.0f} s, "
            f"{self.waited / seconds:.1%} waiting for data, {self.saving_took / seconds:.1%} saving"
        )


@contextlib.contextmanager
def memory_advice(run: Run, world: int, parts: int, needs_full_batch: str) -> Iterator[None]:
    """Raises MemoryError that says what to turn, where the device or the machine has no memory left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # a GPU's OutOfMemoryError is a RuntimeError
        lacking = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not lacking:
            raise
        half = max(world, run.batch_size // 2 // world * world)
        split = f"; or {PARTS}={2 * parts}: the same batch in {2 * parts} parts"
        if needs_full_batch:
            split = f"; it cannot be computed in parts: {needs_full_batch}"
        elif run.parts is not None:
            split = ""
        raise MemoryError(
            f"{run.name}: no memory left for a batch_size of {run.batch_size}, {run.batch_size // world} a process; "
            f"try batch_size: {half}, or a smaller image_size{split}"
        ) from error


def _memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU so far; on a CPU, what the process has now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _trim(log: Path, step: int) -> None:
    """Forget lines past the state that is resumed from."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []:
        with contextlib.suppress(ValueError):  # half a line, where the power failed
            if json.loads(line)["step"] <= step:
                kept.append(line)
    part = log.with_suffix(".tmp")
    part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    part.replace(log)
