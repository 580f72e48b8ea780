"""Our training loop on packed photos, and a plain loop as in the papers' scripts around our network and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import operations
from benchmarks.sides.work import UNTIMED, Clock, Work, batches, torch_optimizer
from components.data.augment import View
from components.data.fields import Draws, make_batch
from components.data.photos import Photos
from components.training import optim
from components.training.loop import accelerator, fit
from components.training.monitor import Run


def ours(work: Work, steps: int, workers: int, precision: str) -> tuple[Clock, int]:  # noqa: ARG001
    """This project's loop on packed photos; the precision is that of SELFSIGHT_PRECISION."""
    acc = accelerator()
    photos, method = Photos(work.data / "packed"), work.ours()
    rows, views = photos.rows("train"), work.views()

    def load(step: int) -> list[Tensor]:
        start = step * work.batch % (len(rows) - work.batch)
        return make_batch(photos, rows[start : start + work.batch], views, 0, step, acc.device)

    plain = work.ours(plain=True)  # the count is of the same operators on all sides
    flops = operations(lambda: plain(load(0))["loss"])
    optimizer = optim.build(method, work.settings, 256)
    clock = Clock(optimizer)
    method.register_forward_pre_hook(lambda *_: clock.mark("outside"))
    method.register_forward_hook(lambda *_: clock.mark("forward"))
    optimizer.register_step_pre_hook(lambda *_: clock.mark("backward"))
    run = Run(work.method, UNTIMED + steps + 1, work.batch, Path("log.jsonl"), Path("state"))
    fit(method, load, optimizer, work.settings, run, acc)
    return clock, flops


def torchvision(work: Work, steps: int, workers: int, precision: str) -> tuple[Clock, int]:
    """Our network and loss in a plain loop, with torchvision's transforms."""
    from torchvision import transforms as tv

    def transform(view: View) -> Any:
        jitter = view.jitter
        assert jitter is not None
        strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        steps = [
            tv.RandomResizedCrop(view.size, scale=view.crop),
            tv.RandomHorizontalFlip(view.flip),
            tv.RandomApply([tv.ColorJitter(*strengths)], p=jitter.p),
            tv.RandomGrayscale(view.gray),
            tv.RandomApply([tv.GaussianBlur(max(3, view.size // 10 | 1), view.sigma)], p=view.blur),
            *([tv.RandomSolarize(128, view.solarize)] if view.solarize else []),
            tv.PILToTensor(),
        ]
        return tv.Compose(steps)

    views = work.views()
    each = [transform(view) for view in views if isinstance(view, View)]
    draws = [torch.rand(work.batch, *view.shape) for view in views if isinstance(view, Draws)]
    method = work.ours(plain=True)
    if precision == "bf16cl":
        method.to(memory_format=torch.channels_last)
    optimizer = torch_optimizer(work, method)
    clock = Clock(optimizer)
    flops = 0
    for batch in batches(work, lambda image: [one(image) for one in each], steps, workers):
        inputs = [*batch, *draws]

        def forward(inputs: list[Tensor] = inputs) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
                return method(inputs)["loss"]

        if not flops:
            flops = operations(forward)
            optimizer.zero_grad()
        method.before_step(0.5)
        clock.mark("outside")
        loss = forward()
        clock.mark("forward")
        loss.backward()
        clock.mark("backward")
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
    return clock, flops
