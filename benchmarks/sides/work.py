"""What all sides of a line share: the work, the photos and the clock."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from components.config import parse
from components.methods import METHODS, Method
from components.models.backbone import BackboneConfig, ResNetBackbone, ViT, ViTBackbone, build
from components.training import optim

UNTIMED = 2  # steps at the beginning; one at the end is not timed either, as no views are made during it
HEADS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 512, "dim": 128, "temperature": 0.5, "color_strength": 0.5},
    "moco": {"queue": 512, "dim": 128, "momentum": 0.99, "batch_norm_groups": 1},
    "dino": {"hidden": 2048, "bottleneck": 256, "prototypes": 4096, "local_crops": 6},
}
SGD = optim.SGD(lr=0.06, momentum=0.9, weight_decay=5e-4, decay_all=True, schedule=optim.Constant())
ADAMW = optim.AdamW(lr=5e-4, weight_decay=0.04, schedule=optim.Constant())


class Work:
    """The method, network, heads, views and optimizer of one line."""

    def __init__(self, method: str, backbone: str, size: int, batch: int, data: Path) -> None:
        self.method, self.size, self.batch, self.data = method, size, batch, data
        patch = {32: 4, 40: 8, 64: 8}.get(size, 16)
        self.shape: BackboneConfig = {
            "default": ViTBackbone(image_size=size, patch_size=patch, width=128, depth=3, heads=4),  # of params.yaml
            "vit": ViTBackbone(image_size=size, patch_size=patch, width=192, depth=12, heads=3),  # ViT-T
            "resnet18": ResNetBackbone(kind="resnet18", image_size=size),
        }[backbone]
        self.blur = 0.0 if size < 64 else 0.5
        settings = dict(HEADS[method])
        if method == "dino":
            settings["local_size"] = self.local = {32: 16, 40: 24, 64: 32}.get(size, 96)
        else:
            settings["blur"] = self.blur
        self.config = parse(METHODS[method].config, settings, method)
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
    """Returns the backbone without our faster convolutions and last block."""
    if isinstance(backbone, ViT):
        backbone.__class__ = StockViT
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.__class__ = nn.Conv2d
    return backbone


class Clock:
    """Seconds of a step's parts, from one step of the optimizer to the next; the most memory seen at a step."""

    PARTS = ("outside", "forward", "backward", "optimizer")  # outside: wait for views, and what goes on between steps

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps: list[Counter[str]] = [Counter()]
        self.memory, self.last = 0, time.perf_counter()
        optimizer.register_step_post_hook(self._tick)

    def mark(self, part: str) -> None:
        """Counts the time since the last mark as `part`."""
        now = time.perf_counter()
        self.steps[-1][part] += now - self.last  # type: ignore[assignment]
        self.last = now

    def _tick(self, *_: Any) -> None:
        self.mark("optimizer")
        self.steps.append(Counter())
        me = psutil.Process()
        now = sum(process.memory_info().rss for process in (me, *me.children(recursive=True)))
        self.memory = max(self.memory, now)

    def seconds(self) -> dict[str, float]:
        """Returns the mean seconds of each part over the timed steps; the mean, because workers deliver in bursts."""
        timed = self.steps[UNTIMED:-2]
        return {part: sum(step[part] for step in timed) / len(timed) for part in self.PARTS}


class Files(Dataset[Any]):
    """JPEG files, opened and transformed one at a time."""

    def __init__(self, folder: Path, transform: Callable[[Any], Any]) -> None:
        self.paths, self.transform = sorted(folder.rglob("*.jpg")), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def batches(work: Work, transform: Callable[[Any], Any], steps: int, workers: int) -> Iterator[Any]:
    """Yields full batches, shuffled, epoch after epoch, as a script's DataLoader does."""
    torch.manual_seed(0)
    random.seed(0)
    data = Files(work.data / "files", transform)
    loader = DataLoader(
        data, work.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    done = 0
    while True:
        for batch in loader:
            if done == UNTIMED + steps + 1:
                return
            done += 1
            yield batch


def torch_optimizer(work: Work, module: nn.Module) -> torch.optim.Optimizer:
    params = [p for p in module.parameters() if p.requires_grad]
    if isinstance(work.settings, optim.AdamW):
        return torch.optim.AdamW(params, lr=work.settings.lr, weight_decay=work.settings.weight_decay)
    return torch.optim.SGD(params, lr=work.settings.lr, momentum=0.9, weight_decay=work.settings.weight_decay)
