"""lightly for `benchmarks.peers`: its parts in a plain loop, and its own CIFAR-10 script."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.machine import operations
from benchmarks.sides.work import UNTIMED, Clock, Work, as_stock, batches, torch_optimizer
from components.models.backbone import build


class Bare(nn.Module):
    """Our network without its normalization: lightly's transforms normalize."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.net = as_stock(build(work.shape))
        self.net.mean.zero_()
        self.net.std.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def plain(work: Work, steps: int, workers: int, precision: str) -> tuple[Clock, int]:
    step, student, transform = STEPS[work.method](work)
    layout = torch.channels_last if precision == "bf16cl" else torch.contiguous_format
    student.to(memory_format=layout)
    optimizer = torch_optimizer(work, student)
    clock = Clock(optimizer)
    flops = 0
    for batch in batches(work, transform, steps, workers):
        views = [view.to(memory_format=layout) for view in batch]

        def loss(views: list[Tensor] = views) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
                return step(views)

        if not flops:
            flops = operations(loss)
            optimizer.zero_grad()
        clock.mark("outside")
        value = loss()
        clock.mark("forward")
        value.backward()
        clock.mark("backward")
        optimizer.step()
        optimizer.zero_grad()
    return clock, flops


def simclr(work: Work) -> Any:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    net = Bare(work)
    student = nn.Sequential(net, SimCLRProjectionHead(net.net.dim, 512, 128))
    criterion = NTXentLoss(temperature=0.5)

    def step(views: list[Tensor]) -> Tensor:
        a, b = student(torch.cat(views)).chunk(2)  # batch norm over both, as ours
        return criterion(a, b)

    return step, student, SimCLRTransform(work.size, cj_strength=0.5, gaussian_blur=work.blur)


def moco(work: Work) -> Any:
    from copy import deepcopy

    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum
    from lightly.transforms import MoCoV2Transform

    net = Bare(work)
    student = nn.Sequential(net, MoCoProjectionHead(net.net.dim, net.net.dim, 128))
    teacher = deepcopy(student).requires_grad_(False)  # noqa: FBT003
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(512, 128))

    def step(views: list[Tensor]) -> Tensor:
        update_momentum(student, teacher, 0.99)
        with torch.no_grad():
            mixed, order = batch_shuffle(views[1])
            keys = batch_unshuffle(teacher(mixed), order)
        return criterion(student(views[0]), keys)

    return step, student, MoCoV2Transform(work.size, gaussian_blur=work.blur)


def dino(work: Work) -> Any:
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import DINOTransform

    def network() -> nn.Module:  # its weight norm cannot be copied
        net = Bare(work)
        return nn.Sequential(net, DINOProjectionHead(net.net.dim, 2048, 256, 4096))

    student, teacher = network(), network().requires_grad_(False)  # noqa: FBT003
    teacher.load_state_dict(student.state_dict())
    criterion = DINOLoss(4096)

    def step(views: list[Tensor]) -> Tensor:
        update_momentum(student, teacher, 0.996)
        with torch.no_grad():
            targets = [teacher(view) for view in views[:2]]
        return criterion(targets, [student(view) for view in views], epoch=0)

    transform = DINOTransform(global_crop_size=work.size, local_crop_size=work.local, n_local_views=6)
    return step, student, transform


STEPS = {"simclr": simclr, "moco": moco, "dino": dino}


def script(work: Work, steps: int, workers: int, precision: str) -> tuple[Clock, int]:
    """SimCLR as the CIFAR-10 script of lightly's documentation trains it, without its evaluation after every epoch.

    Its own ResNet-18, dataset and module, a forward pass a view, and Lightning's loop.
    """
    import pytorch_lightning as pl
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models import ResNetGenerator
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from lightly.utils.benchmarking import BenchmarkModule

    class SimCLR(BenchmarkModule):
        clock: Clock

        def __init__(self) -> None:
            super().__init__(DataLoader([]), 10)  # type: ignore[arg-type]
            layers = list(ResNetGenerator("resnet-18").children())[:-1]
            self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head, self.criterion = SimCLRProjectionHead(512, 512, 128), NTXentLoss()

        def loss(self, views: Any) -> Tensor:
            return self.criterion(*(self.head(self.backbone(view)) for view in views))

        def training_step(self, batch: Any, _: int) -> Tensor:
            self.clock.mark("outside")
            value = self.loss(batch[0])
            self.clock.mark("forward")
            return value

        def on_after_backward(self) -> None:
            self.clock.mark("backward")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch_optimizer(work, self)
            self.clock = Clock(optimizer)
            return optimizer

    torch.manual_seed(0)
    module = SimCLR()
    flops = operations(lambda: module.loss(torch.rand(2, work.batch, 3, work.size, work.size)))
    module.zero_grad()
    data = LightlyDataset(str(work.data / "files"), transform=SimCLRTransform(work.size, gaussian_blur=work.blur))
    trainer = pl.Trainer(
        max_steps=UNTIMED + steps + 1,
        accelerator="cpu",
        devices=1,
        precision="32-true" if precision == "fp32" else "bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, work.batch, shuffle=True, drop_last=True, num_workers=workers))
    return module.clock, flops
