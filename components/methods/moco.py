"""MoCo: tell your picture from a long queue of others, encoded by a slowly moving copy of yourself.

v1: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020.
https://arxiv.org/abs/1911.05722
v2: Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020. https://arxiv.org/abs/2003.04297

The order of a step is that of the reference code (moco/builder.py): query, slow copy moves, key, logits against the old
queue, and only then the keys join the queue, or each would be its own negative. With batch norm in the backbone a batch
is a cheat sheet (section 3.3): queries and keys are normalized in groups, as on the reference's eight devices, and keys
in other groups than queries, shuffled over all ranks. The order comes from the data's draws, so all ranks agree on it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components import ranks
from components.config import Fraction, FractionRange
from components.data.augment import Jitter, View
from components.data.fields import Draws
from components.methods.auto import QueueLength
from components.methods.looks import moco_v2
from components.methods.losses import info_nce, unit
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone, ResNet
from components.models.heads import mlp
from components.models.memory import EMA, Queue
from components.models.norm import BatchNorm2d
from components.training.optim import SGD, Cosine, Optimizer, Steps


class MoCoConfig(MethodConfig):
    """Defaults: v2, section 3 and the reference's flags for it."""

    head: Literal["linear", "mlp"] = "mlp"  # v1 and v2
    dim: int = Field(128, ge=1)  # v1, section 3.3
    queue: QueueLength = Field(65536, ge=1)  # v1, section 4.1
    momentum: Fraction = 0.999  # v1, section 4.1
    temperature: float = Field(0.2, gt=0)  # v2, table 2; v1: 0.07
    symmetric: bool = False  # also with the views exchanged, and both losses added (the reference's CIFAR-10 notebook)
    augmentation: Literal["v1", "v2"] = "v2"
    crop: FractionRange = (0.2, 1.0)  # the reference's loader
    blur: Fraction = 0.5  # of augmentation v2
    batch_norm_groups: int = Field(8, ge=1)  # of the batch, where the backbone has batch norm: v1's eight devices
    optimizer: Optimizer = SGD(lr=0.03, weight_decay=1e-4, decay_all=True, schedule=Cosine())


class MoCoScriptConfig(MoCoConfig):
    """The reference training script as it runs without a flag (main_moco.py): v1's head, temperature and views."""

    head: Literal["linear", "mlp"] = "linear"
    temperature: float = Field(0.07, gt=0)
    augmentation: Literal["v1", "v2"] = "v1"
    optimizer: Optimizer = SGD(
        lr=0.03, weight_decay=1e-4, decay_all=True, schedule=Steps(milestones=(0.6, 0.8), factor=0.1)
    )  # 120 and 160 of 200 epochs


class MoCo(Method):
    @staticmethod
    def views(config: MoCoConfig, image_size: int) -> tuple[View, View, Draws]:
        view = moco_v2(image_size, config.crop, config.blur)
        if config.augmentation == "v1":  # gray, then jitter, always
            view = View(image_size, crop=config.crop, jitter=Jitter(0.4, 0.4, 0.4, 0.4, 1.0), gray=0.2, gray_first=True)
        return view, view, Draws(1)  # a picture's place in the shuffle

    @staticmethod
    def check(config: Any, pictures: int, batch_size: int, world: int) -> None:  # noqa: ARG004
        keys = batch_size * (2 if config.symmetric else 1)
        if config.queue < keys:
            raise ValueError(
                f"queue {config.queue} is shorter than the {keys} keys of a batch; try queue: "
                f"{min(4 * keys, max(keys, pictures // 4))}"
            )
        if config.queue > pictures:
            raise ValueError(
                f"queue {config.queue} is longer than the data ({pictures} pictures), so that every picture would be "
                f"its own negative; allowed: {keys} to {pictures}; try {max(keys, pictures // 4)}"
            )

    def __init__(self, backbone: Backbone, config: MoCoConfig) -> None:
        super().__init__(config)
        width = backbone.dim
        head = nn.Linear(width, config.dim) if config.head == "linear" else mlp(width, width, config.dim, norm=False)
        self.query: Any = nn.Sequential(backbone, head)
        self.key = EMA(self.query)
        self.queue = Queue(config.queue, config.dim)
        self.fresh: list[Tensor] = []  # keys of this step, for the queue
        self.mixes = isinstance(backbone, ResNet)
        if self.mixes:
            self.needs_full_batch = "batch norm in the backbone reads the whole batch"
            for layer in self.modules():
                if isinstance(layer, BatchNorm2d):
                    layer.shared = False  # in_groups says which pictures it reads

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        one, two, draws = batch
        pairs = [(one, two), (two, one)] if self.config.symmetric else [(one, two)]
        keys = [unit(self.encode_keys(images, draws)) for _, images in pairs]  # [B, D] each
        said = [
            info_nce(unit(self.in_groups(self.query, images)), k, self.queue.items, self.config.temperature)
            for (images, _), k in zip(pairs, keys, strict=True)
        ]
        self.fresh.append(torch.stack(keys, 1))  # picture by picture, so that parts and ranks are as one batch
        loss, found = (torch.stack(values) for values in zip(*said, strict=True))
        return {"loss": loss.sum(), "accuracy": found.mean()}

    def in_groups(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D]: if there is batch norm, each group of the whole batch has its own statistics."""
        groups = max(1, self.config.batch_norm_groups // ranks.world()) if self.mixes else 1
        if len(images) % groups:
            raise ValueError(
                f"a batch of {len(images)} pictures a process is not {groups} equal groups; try batch_norm_groups "
                f"{ranks.world()} or a multiple of it that divides batch_size"
            )
        return torch.cat([encoder(group) for group in images.chunk(groups)])

    @torch.no_grad()
    def encode_keys(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, S, S], draws [B, 1] -> [B, D], in another grouping than the queries if there is batch norm."""
        if not self.mixes:
            return self.key(images)
        mine = len(images)
        order = ranks.gather(draws)[:, 0].argsort(stable=True)  # the same on all ranks
        shuffled = ranks.gather(images)[order].narrow(0, ranks.rank() * mine, mine)
        keys = ranks.gather(self.in_groups(self.key, shuffled))
        return keys[order.argsort()].narrow(0, ranks.rank() * mine, mine)

    def after_step(self) -> None:
        """The reference moves the copy before it encodes keys: that is now, after the step, but for the first, when the
        two are equal. Its queue takes the keys of all ranks."""
        self.queue.push(ranks.gather(torch.cat(self.fresh)).flatten(0, 1))
        self.fresh.clear()
        self.key.update(self.query, self.config.momentum)

    def keep(self) -> Backbone:
        return self.query[0]
