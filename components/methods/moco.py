"""MoCo: find the other view of a photo among a long queue of other photos, encoded by an EMA copy of the network.

v1: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020.
https://arxiv.org/abs/1911.05722
v2: Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020. https://arxiv.org/abs/2003.04297

The order of a step is that of the reference code (moco/builder.py): queries, update of the EMA copy, keys, logits
against the old queue; then the keys are pushed into the queue (earlier, each would be its own negative).
BatchNorm leaks information between samples (section 3.3). Queries and keys are therefore normalized in groups, as on
the reference's eight devices, and keys in other groups than queries: they are shuffled over all ranks, in the
order of random numbers in the batch (`Draws`), which is the same on all ranks.
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
from components.models.backbone import Backbone, ResNet
from components.models.heads import mlp
from components.models.memory import EMA, Queue
from components.models.norm import BatchNorm2d
from components.training.optim import SGD, Cosine, Optimizer, Steps


class MoCoConfig(MethodConfig):
    """Defaults: v2, section 3, and the reference script's flags for it."""

    head: Literal["linear", "mlp"] = "mlp"  # v1 and v2
    dim: int = Field(128, ge=1)  # v1, section 3.3
    queue: QueueLength = Field(65536, ge=1)  # v1, section 4.1
    momentum: Fraction = 0.999  # v1, section 4.1
    temperature: float = Field(0.2, gt=0)  # v2, table 2; v1: 0.07
    symmetric: bool = False  # adds the loss with the views exchanged (the reference's CIFAR-10 notebook)
    augmentation: Literal["v1", "v2"] = "v2"
    crop: FractionRange = (0.2, 1.0)  # the reference's loader
    blur: Fraction = 0.5  # of augmentation v2
    batch_norm_groups: int = Field(8, ge=1)  # of a batch, if the backbone has batch norm; v1: eight devices
    optimizer: Optimizer = SGD(lr=0.03, weight_decay=1e-4, decay_all=True, schedule=Cosine())


class MoCoScriptConfig(MoCoConfig):
    """Defaults: the reference training script without flags (main_moco.py), with v1's head, temperature and views."""

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
        return view, view, Draws(1)  # a photo's position in the shuffled batch

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world: int) -> None:  # noqa: ARG004
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
        self.has_batch_norm = isinstance(backbone, ResNet)
        if self.has_batch_norm:
            self.needs_full_batch = "batch norm in the backbone uses the statistics of the whole batch"
            for layer in self.modules():
                if isinstance(layer, BatchNorm2d):
                    layer.shared = False  # over ranks: encode_in_groups decides which photos are normalized together

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
        self.pending_keys.append(torch.stack(keys, 1))  # photo by photo: micro-batches and ranks keep one batch's order
        losses, accuracies = (torch.stack(values) for values in zip(*results, strict=True))
        return {"loss": losses.sum(), "accuracy": accuracies.mean()}

    def encode_in_groups(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D]. If there is batch norm, each group of the whole batch has its own statistics."""
        groups = max(1, self.config.batch_norm_groups // ranks.world()) if self.has_batch_norm else 1
        if len(images) % groups:
            raise ValueError(
                f"a batch of {len(images)} photos per process cannot be split in {groups} equal groups; try "
                f"batch_norm_groups {ranks.world()} or a multiple of it that divides batch_size"
            )
        return torch.cat([encoder(group) for group in images.chunk(groups)])

    @torch.no_grad()
    def encode_keys(self, images: Tensor, shuffle_draws: Tensor) -> Tensor:
        """[B, 3, S, S] and draws [B, 1] -> [B, D]. If there is batch norm, in other groups than the queries."""
        if not self.has_batch_norm:
            return self.key(images)
        batch_size = len(images)
        first = ranks.rank() * batch_size
        order = ranks.gather(shuffle_draws)[:, 0].argsort(stable=True)  # the same on all ranks
        shuffled = ranks.gather(images)[order].narrow(0, first, batch_size)
        keys = ranks.gather(self.encode_in_groups(self.key, shuffled))
        return keys[order.argsort()].narrow(0, first, batch_size)

    def after_step(self) -> None:
        """Pushes the keys of all ranks into the queue and updates the EMA copy.

        The reference updates the copy in the next step, before its keys; in the first step the two networks are equal,
        so that an update after the step is the same.
        """
        self.queue.push(ranks.gather(torch.cat(self.pending_keys)).flatten(0, 1))
        self.pending_keys.clear()
        self.key.update(self.query, self.config.momentum)

    def keep(self) -> Backbone:
        return self.query[0]
