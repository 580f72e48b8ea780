"""MoCo: tell your picture from a long queue of others, encoded by a slowly moving copy of yourself.

v1: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020.
https://arxiv.org/abs/1911.05722
v2: Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020. https://arxiv.org/abs/2003.04297

The order of a step is that of the reference code (moco/builder.py): query, slow copy moves, key, logits against the old
queue, and only then the keys join the queue, or each would be its own negative. With batch norm in the backbone a batch
is a cheat sheet, so keys are encoded in another grouping than queries: shuffled, in groups of batch / groups.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components import ranks
from components.data.augment import Jitter, View
from components.methods.losses import info_nce, unit
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone, ResNet
from components.models.heads import mlp
from components.models.memory import Queue, Slow
from components.training.optim import SGD, Cosine, Optimizer, Steps


class MoCoConfig(MethodConfig):
    """Defaults: v2."""

    head: Literal["linear", "mlp"] = "mlp"
    dim: int = 128
    queue: int = Field(65536, ge=1)
    momentum: float = Field(0.999, ge=0, le=1)
    temperature: float = Field(0.2, gt=0)
    augmentation: Literal["v1", "v2"] = "v2"
    crop: tuple[float, float] = (0.2, 1.0)
    batch_norm_groups: int = Field(8, ge=1)  # of the key's batch, where the backbone has batch norm: v1's eight GPUs
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
    def views(config: MoCoConfig, image_size: int) -> tuple[View, View]:
        if config.augmentation == "v1":  # gray, then jitter, always
            jitter = Jitter(0.4, 0.4, 0.4, 0.4, p=1.0)
            view = View(image_size, crop=config.crop, jitter=jitter, gray=0.2, gray_first=True)
        else:
            jitter = Jitter(0.4, 0.4, 0.4, 0.1, p=0.8)
            view = View(image_size, crop=config.crop, jitter=jitter, gray=0.2, blur=0.5)
        return view, view

    @staticmethod
    def check(config: Any, pictures: int, batch_size: int, world: int) -> None:  # noqa: ARG004
        if config.queue < batch_size:
            raise ValueError(f"queue {config.queue} is shorter than batch_size {batch_size}; try {4 * batch_size}")
        if config.queue > pictures:
            raise ValueError(
                f"queue {config.queue} is longer than the data ({pictures} pictures), so that every picture would be "
                f"its own negative; allowed: {batch_size} to {pictures}; try {max(batch_size, pictures // 4)}"
            )

    def __init__(self, backbone: Backbone, config: MoCoConfig) -> None:
        super().__init__(config)
        width = backbone.dim
        head = nn.Linear(width, config.dim) if config.head == "linear" else mlp(width, width, config.dim, norm=False)
        self.query: Any = nn.Sequential(backbone, head)
        self.key = Slow(self.query)
        self.queue = Queue(config.queue, config.dim)
        self.fresh: list[Tensor] = []  # keys of this step, for the queue
        if isinstance(backbone, ResNet):
            self.coupled = "batch norm in the backbone reads the whole batch"
        self.groups = config.batch_norm_groups if isinstance(backbone, ResNet) else 1

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        q = unit(self.query(batch[0]))  # [B, D]
        k = unit(self.encode_keys(batch[1]))
        loss, found = info_nce(q, k, self.queue.items, self.config.temperature)
        self.fresh.append(k)
        return {"loss": loss, "accuracy": found}

    def encode_keys(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D], shuffled and in groups if there is batch norm, so that statistics tell nothing."""
        if self.groups == 1:
            return self.key(images)
        order = torch.randperm(len(images), device=images.device)
        keys = torch.cat([self.key(group) for group in images[order].chunk(self.groups)])
        return keys[order.argsort()]

    def after_step(self) -> None:
        """The reference moves the copy before it encodes keys: that is now, after the step, but for the first, when the
        two are equal. Its queue takes the keys of all ranks."""
        self.queue.push(ranks.gather(torch.cat(self.fresh)))
        self.fresh.clear()
        self.key.follow(self.query, self.config.momentum)

    def keep(self) -> Backbone:
        return self.query[0]
