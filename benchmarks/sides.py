"""One side of a line of `benchmarks.peers`, alone in its process; the last line it prints is what was measured."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from components.config import parse
from components.data.augment import Draws, View, look
from components.data.photos import Photos
from components.machine import keep_memory
from components.methods import METHODS, Method
from components.models.backbone import ResNetBackbone, ViT, ViTBackbone, build
from components.training import optim
from components.training.loop import accelerator, fit
from components.training.watch import Run

UNTIMED = 2
HEADS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 512, "dim": 128, "temperature": 0.5, "color_strength": 0.5},
    "moco": {"queue": 512, "dim": 128, "momentum": 0.99, "batch_norm_groups": 1},
    "dino": {"hidden": 2048, "bottleneck": 256, "prototypes": 4096, "local_crops": 6},
}
SGD = optim.SGD(lr=0.06, momentum=0.9, weight_decay=5e-4, decay_all=True, schedule=optim.Constant())
ADAMW = optim.AdamW(lr=5e-4, weight_decay=0.04, schedule=optim.Constant())


class Line:
    """What all sides share."""

    def __init__(self, method: str, backbone: str, size: int, batch: int, data: Path) -> None:
        self.method, self.size, self.batch, self.data = method, size, batch, data
        patch = {32: 4, 64: 8}.get(size, 16)
        shape = ViTBackbone(image_size=size, patch_size=patch, width=192, depth=12, heads=3)  # ViT-T
        self.shape = shape if backbone == "vit" else ResNetBackbone(kind="resnet18", image_size=size)
        self.blur = 0.0 if size == 32 else 0.5
        said = dict(HEADS[method])
        if method == "dino":
            said["local_size"] = self.local = 16 if size == 32 else 32 if size == 64 else 96
        else:
            said["blur"] = self.blur
        self.config = parse(METHODS[method].config, said, method)
        self.settings = ADAMW if method == "dino" else SGD

    def ours(self, *, plain: bool = False) -> Method:
        torch.manual_seed(0)
        backbone = build(self.shape)
        return METHODS[self.method].method(as_stock(backbone) if plain else backbone, self.config).train()

    def views(self) -> Any:
        return METHODS[self.method].method.views(self.config, self.size)


class StockViT(ViT):
    """Computes every place in every block, as stock libraries do."""

    def class_token(self, pixels: Tensor) -> Tensor:
        return self.sequence(pixels)[:, 0]


def as_stock(backbone: Any) -> Any:
    if isinstance(backbone, ViT):
        backbone.__class__ = StockViT
    return backbone


class Clock:
    """Seconds between one step of the optimizer and the next; the most memory that was seen at a step."""

    memory = 0

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.at: list[float] = []
        optimizer.register_step_post_hook(self._tick)

    def _tick(self, *_: Any) -> None:
        self.at.append(time.perf_counter())
        me = psutil.Process()
        now = sum(process.memory_info().rss for process in (me, *me.children(recursive=True)))
        Clock.memory = max(Clock.memory, now)

    def mean(self) -> float:
        timed = self.at[UNTIMED - 1 :]  # the mean, for workers deliver in bursts
        return (timed[-1] - timed[0]) / (len(timed) - 1)


def operations(step: Callable[[], Tensor]) -> int:
    """Of one forward and backward."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused one is not counted
        step().backward()
    return counter.get_total_flops()


def ours(line: Line, steps: int, workers: int, precision: str) -> tuple[float, int]:  # noqa: ARG001
    acc = accelerator()
    photos, method = Photos(line.data / "packed"), line.ours()
    rows, views = photos.rows("train"), line.views()

    def load(step: int) -> list[Tensor]:
        start = step * line.batch % (len(rows) - line.batch)
        return look(photos, rows[start : start + line.batch], views, 0, step, acc.device)

    flops = operations(lambda: method(load(0))["loss"])
    method.zero_grad()
    optimizer = optim.build(method, line.settings, 256)
    clock = Clock(optimizer)
    run = Run(line.method, steps + UNTIMED, line.batch, Path("log.jsonl"), Path("state"))
    fit(method, load, optimizer, line.settings, run, acc)
    return clock.mean(), flops


class Files(Dataset[Any]):
    """JPEGs, opened and looked at one by one."""

    def __init__(self, folder: Path, transform: Callable[[Any], Any]) -> None:
        self.paths, self.transform = sorted(folder.rglob("*.jpg")), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def batches(line: Line, transform: Callable[[Any], Any], steps: int, workers: int) -> Iterator[Any]:
    """As a script has them: shuffled, whole, epoch after epoch."""
    torch.manual_seed(0)
    random.seed(0)
    data = Files(line.data / "files", transform)
    loader = DataLoader(
        data, line.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    done = 0
    while True:
        for batch in loader:
            if done == steps + UNTIMED:
                return
            done += 1
            yield batch


def torchvision(line: Line, steps: int, workers: int, precision: str) -> tuple[float, int]:  # noqa: ARG001
    """Our network and loss in a plain loop, with torchvision's transforms."""
    from torchvision import transforms as tv

    def words(view: View) -> Any:
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

    views = line.views()
    each = [words(view) for view in views if isinstance(view, View)]
    luck = [torch.rand(line.batch, view.count) for view in views if isinstance(view, Draws)]
    method = line.ours(plain=True)
    optimizer = torch_optimizer(line, method)
    clock = Clock(optimizer)
    flops = 0
    for batch in batches(line, lambda image: [one(image) for one in each], steps, workers):
        given = [*batch, *luck]
        flops = flops or operations(lambda given=given: method(given)["loss"])  # type: ignore[misc]
        optimizer.zero_grad()
        method.before_step(0.5)
        method(given)["loss"].backward()
        optimizer.step()
        method.after_step()
    return clock.mean(), flops


def torch_optimizer(line: Line, module: nn.Module) -> torch.optim.Optimizer:
    params = [p for p in module.parameters() if p.requires_grad]
    if isinstance(line.settings, optim.AdamW):
        return torch.optim.AdamW(params, lr=line.settings.lr, weight_decay=line.settings.weight_decay)
    return torch.optim.SGD(params, lr=line.settings.lr, momentum=0.9, weight_decay=line.settings.weight_decay)


class Bare(nn.Module):
    """Our network for pixels that are normalized already."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.net = as_stock(build(line.shape))
        self.net.mean.zero_()
        self.net.std.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def lightly(line: Line, steps: int, workers: int, precision: str) -> tuple[float, int]:
    step, student, transform = LIGHTLY[line.method](line)
    layout = torch.channels_last if precision == "bf16cl" else torch.contiguous_format
    student.to(memory_format=layout)
    optimizer = torch_optimizer(line, student)
    clock = Clock(optimizer)
    flops = 0
    for batch in batches(line, transform, steps, workers):
        views = [view.to(memory_format=layout) for view in batch]

        def loss(views: list[Tensor] = views) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
                return step(views)

        flops = flops or operations(loss)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return clock.mean(), flops


def lightly_simclr(line: Line) -> Any:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    net = Bare(line)
    student = nn.Sequential(net, SimCLRProjectionHead(net.net.dim, 512, 128))
    criterion = NTXentLoss(temperature=0.5)

    def step(views: list[Tensor]) -> Tensor:
        a, b = student(torch.cat(views)).chunk(2)  # batch norm over both, as ours
        return criterion(a, b)

    return step, student, SimCLRTransform(line.size, cj_strength=0.5, gaussian_blur=line.blur)


def lightly_moco(line: Line) -> Any:
    from copy import deepcopy

    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum
    from lightly.transforms import MoCoV2Transform

    net = Bare(line)
    student = nn.Sequential(net, MoCoProjectionHead(net.net.dim, net.net.dim, 128))
    teacher = deepcopy(student).requires_grad_(False)  # noqa: FBT003
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(512, 128))

    def step(views: list[Tensor]) -> Tensor:
        update_momentum(student, teacher, 0.99)
        with torch.no_grad():
            mixed, order = batch_shuffle(views[1])
            keys = batch_unshuffle(teacher(mixed), order)
        return criterion(student(views[0]), keys)

    return step, student, MoCoV2Transform(line.size, gaussian_blur=line.blur)


def lightly_dino(line: Line) -> Any:
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import DINOTransform

    def network() -> nn.Module:  # its weight norm cannot be copied
        net = Bare(line)
        return nn.Sequential(net, DINOProjectionHead(net.net.dim, 2048, 256, 4096))

    student, teacher = network(), network().requires_grad_(False)  # noqa: FBT003
    teacher.load_state_dict(student.state_dict())
    criterion = DINOLoss(4096)

    def step(views: list[Tensor]) -> Tensor:
        update_momentum(student, teacher, 0.996)
        with torch.no_grad():
            said = [teacher(view) for view in views[:2]]
        return criterion(said, [student(view) for view in views], epoch=0)

    transform = DINOTransform(global_crop_size=line.size, local_crop_size=line.local, n_local_views=6)
    return step, student, transform


LIGHTLY = {"simclr": lightly_simclr, "moco": lightly_moco, "dino": lightly_dino}


def main() -> None:
    keep_memory()
    side, method, backbone, size, batch, data, workers, precision, steps = sys.argv[1:]
    line = Line(method, backbone, int(size), int(batch), Path(data))
    run = {"ours": ours, "lightly": lightly, "torchvision": torchvision}[side]
    seconds, flops = run(line, int(steps), int(workers), precision)
    print(json.dumps({"seconds": seconds, "flops": flops, "memory": Clock.memory}))


if __name__ == "__main__":
    main()
