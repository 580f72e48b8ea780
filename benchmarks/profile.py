"""Prints how the time of a training step divides among the parts of the loop, and the operations that take longest.

    python -m benchmarks.profile --method simclr                # on artifacts/prepare, with the settings of params.yaml
    python -m benchmarks.profile --method dino --data FOLDER --steps 20

It writes no files. Views are made in a thread during the step; the time that the step waits for them is a part.
"""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from components.config import section
from components.data.photos import Photos
from components.machine import keep_memory
from components.methods import METHODS
from components.stages.pretrain import Setup, setup
from components.stages.pretrain_config import configure_for
from components.training.loop import accelerator, fit
from components.training.monitor import Run

PARTS = ("wait for data", "forward", "backward", "optimizer", "after the step", "log the losses")
UNTIMED = 3


def main() -> None:
    keep_memory()
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", required=True, choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--data", type=Path, default=Path("artifacts/prepare"), help="folder written by prepare")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--operations", type=int, default=12, help="how many of the longest are named")
    args = parser.parse_args()
    acc = accelerator()
    run_setup = setup(configure_for(args.method, section("pretrain"), Photos(args.data)), args.data, acc)
    size = run_setup.config.batch_size

    timed(run_setup, UNTIMED, acc)
    seconds = timed(run_setup, args.steps, acc)
    start = time.thread_time()
    run_setup.load(0)
    load_seconds = time.thread_time() - start
    on_gpu = acc.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        timed(run_setup, args.steps, acc)
    print(report(profiler.key_averages(), args, seconds, load_seconds, size))


def timed(run_setup: Setup, steps: int, acc: Accelerator) -> float:
    """Train for `steps` and keep nothing: seconds a step."""
    config = run_setup.config
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config.method, steps, config.batch_size, Path(folder) / "log.jsonl", Path(folder) / "state")
        start = time.monotonic()
        fit(run_setup.method, run_setup.load, run_setup.optimizer, config.settings.optimizer, run, acc)
        return (time.monotonic() - start) / steps


def report(events: Any, args: Any, seconds: float, load_seconds: float, size: int) -> str:
    """Milliseconds a step. Parts are time of the thread that drives; on a GPU operations are the device's own."""
    on_gpu = torch.cuda.is_available()
    column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events_by_name = {event.key: event for event in events if event.device_type == DeviceType.CPU}
    total_time = sum(events_by_name[name].cpu_time_total for name in PARTS)
    lines = [
        f"{args.method}: {1000 * seconds:.1f} ms a step, {size / seconds:.0f} images/s; loading a batch takes "
        f"{1000 * load_seconds:.1f} ms of one thread beside it",
        "",
        "| part | ms a step | share |",
        "|---|---|---|",
    ]
    for name in PARTS:
        microseconds = events_by_name[name].cpu_time_total
        lines.append(f"| {name} | {microseconds / args.steps / 1000:.1f} | {microseconds / total_time:.1%} |")
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    operations = [
        event
        for event in events
        if event.device_type == device and event.key not in PARTS and not event.is_user_annotation
    ]
    operations.sort(key=lambda event: -getattr(event, column))
    total = sum(getattr(event, column) for event in operations)
    lines += ["", "| operation | ms a step | share | calls a step |", "|---|---|---|---|"]
    for event in operations[: args.operations]:
        microseconds = getattr(event, column)
        calls = event.count / args.steps
        lines.append(
            f"| {event.key} | {microseconds / args.steps / 1000:.1f} | {microseconds / total:.1%} | {calls:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"benchmarks.profile: {error}")
