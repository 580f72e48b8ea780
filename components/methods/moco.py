"""MoCo: find the other view of a photo among a long queue of other photos' features, encoded by an EMA of the network.

v1: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020.
https://arxiv.org/abs/1911.05722
v2: Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020. https://arxiv.org/abs/2003.04297

A step has the order of the official code (moco/builder.py): queries, update of the EMA copy, keys, logits against the
queue. The keys are pushed into the queue last; if they were pushed before the logits, each would be its own negative.
BatchNorm leaks information between the samples of a batch (section 3.3). As in the official code on eight GPUs, batch
norm therefore sees one group of photos at a time, and the keys' groups contain other photos than the queries' groups.
For that the keys' images are shuffled over all ranks, by random numbers that every rank has (`Draws`).
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
from components.methods.losses import info_nce, l2_normalize
from components.methods.method import Batch, Method, MethodConfig
from components.methods.view_pairs import moco_v2_view
from components.models.backbone import Backbone
from components.models.heads import mlp
from components.models.memory import EMA, Queue
from components.models.norm import BatchNorm2d
from components.training.optim import SGD, Cosine, Optimizer, Steps


class MoCoConfig(MethodConfig):
    """Defaults: v2, section 3, and the official script's flags for it."""

    head: Literal["linear", "mlp"] = "mlp"  # v1 and v2
    dim: int = Field(128, ge=1)  # v1, section 3.3
    queue: QueueLength = Field(65536, ge=1)  # v1, section 4.1
    momentum: Fraction = 0.999  # v1, section 4.1
    temperature: float = Field(0.2, gt=0)  # v2, table 2; v1: 0.07
    symmetric: bool = False  # adds the loss with the views exchanged (the official CIFAR-10 notebook)
    augmentation: Literal["v1", "v2"] = "v2"
    crop: FractionRange = (0.2, 1.0)  # the official loader
    blur: Fraction = 0.5  # probability, in augmentation v2
    batch_norm_groups: int = Field(8, ge=1)  # groups per batch, if the backbone has batch norm; v1: eight GPUs
    optimizer: Optimizer = SGD(lr=0.03, weight_decay=1e-4, decay_all=True, schedule=Cosine())


class MoCoScriptConfig(MoCoConfig):
    """Defaults: the official training script without flags (main_moco.py), with v1's head, temperature and views."""

    head: Literal["linear", "mlp"] = "linear"
    temperature: float = Field(0.07, gt=0)
    augmentation: Literal["v1", "v2"] = "v1"
    optimizer: Optimizer = SGD(
        lr=0.03, weight_decay=1e-4, decay_all=True, schedule=Steps(milestones=(0.6, 0.8), factor=0.1)
    )  # 120 and 160 of 200 epochs


class MoCo(Method):
    @staticmethod
    def views(config: MoCoConfig, image_size: int) -> tuple[View, View, Draws]:
        view = moco_v2_view(image_size, config.crop, config.blur)
        if config.augmentation == "v1":  # grayscale before the jitter, which is always applied
            view = View(image_size, crop=config.crop, jitter=Jitter(0.4, 0.4, 0.4, 0.4, 1.0), gray=0.2, gray_first=True)
        return view, view, Draws(1)  # one random number per photo, which orders the shuffled batch

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world_size: int) -> None:  # noqa: ARG004
        keys = batch_size * (2 if config.symmetric else 1)
        if config.queue < keys:
            raise ValueError(
                f"queue {config.queue} is shorter than the {keys} keys of a batch; try queue: "
                f"{min(4 * keys, max(keys, photos // 4))}"
            )
        if config.queue > photos:
            raise ValueError(
                f"queue {config.queue} is longer than the data ({photos} photos), so that every photo would be "
                f"its own negative; allowed: {keys} to {photos}; try {max(keys, photos // 4)}"
            )

    def __init__(self, backbone: Backbone, config: MoCoConfig) -> None:
        super().__init__(config)
        width = backbone.dim
        head = nn.Linear(width, config.dim) if config.head == "linear" else mlp(width, width, config.dim, norm=False)
        self.query: Any = nn.Sequential(backbone, head)
        self.key = EMA(self.query)
        self.queue = Queue(config.queue, config.dim)
        self.pending_keys: list[Tensor] = []  # of this step, to be pushed into the queue
        self.has_batch_norm = backbone.has_batch_norm
        if self.has_batch_norm:
            self.needs_full_batch = "batch norm in the backbone uses the statistics of the whole batch"
            for layer in self.modules():
                if isinstance(layer, BatchNorm2d):
                    layer.sync_ranks = False  # encode_in_groups says which photos are normalized together

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        query_images, key_images, shuffle_draws = batch
        pairs = [(query_images, key_images)]
        if self.config.symmetric:
            pairs.append((key_images, query_images))
        keys = [l2_normalize(self.encode_keys(images, shuffle_draws)) for _, images in pairs]  # [B, D] each
        queries = [l2_normalize(self.encode_in_groups(self.query, images)) for images, _ in pairs]
        results = [
            info_nce(q, k, self.queue.items, self.config.temperature) for q, k in zip(queries, keys, strict=True)
        ]
        # [B, 1 or 2, D], one row per photo: rows of micro-batches and ranks, put together, are in the batch's order
        self.pending_keys.append(torch.stack(keys, 1))
        losses, accuracies = (torch.stack(values) for values in zip(*results, strict=True))
        return {"loss": losses.sum(), "accuracy": accuracies.mean()}

    def encode_in_groups(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D]. With batch norm in the backbone, each group of photos has its own statistics."""
        groups = max(1, self.config.batch_norm_groups // ranks.world_size()) if self.has_batch_norm else 1
        if len(images) % groups:
            raise ValueError(
                f"a batch of {len(images)} photos per process cannot be split in {groups} equal groups; try "
                f"batch_norm_groups {ranks.world_size()} or a multiple of it that divides batch_size"
            )
        return torch.cat([encoder(group) for group in images.chunk(groups)])

    @torch.no_grad()
    def encode_keys(self, images: Tensor, shuffle_draws: Tensor) -> Tensor:
        """[B, 3, S, S] and draws [B, 1] -> [B, D]. With batch norm, keys are encoded in other groups than queries."""
        if not self.has_batch_norm:
            return self.key(images)
        batch_size = len(images)
        first = ranks.rank() * batch_size  # this rank's rows
        order = ranks.gather(shuffle_draws)[:, 0].argsort(stable=True)  # the same on all ranks
        shuffled = ranks.gather(images)[order].narrow(0, first, batch_size)
        keys = ranks.gather(self.encode_in_groups(self.key, shuffled))
        return keys[order.argsort()].narrow(0, first, batch_size)

    def after_step(self) -> None:
        """Pushes the keys of all ranks into the queue and updates the EMA copy.

        The official code updates the copy in the next step, before its keys. The result is the same: nothing reads the
        copy in between, and in the first step the two networks are equal, so that the update there changes nothing.
        """
        self.queue.push(ranks.gather(torch.cat(self.pending_keys)).flatten(0, 1))
        self.pending_keys.clear()
        self.key.update(self.query, self.config.momentum)

    def keep(self) -> Backbone:
        return self.query[0]
