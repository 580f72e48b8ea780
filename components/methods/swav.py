"""SwAV: predict the cluster of one crop of a photo from another crop; each batch is split evenly over the clusters.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020.
https://arxiv.org/abs/2006.09882
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from components import ranks
from components.config import Fraction, FractionRange
from components.data.augment import Jitter, View
from components.methods.auto import Prototypes, QueueLength
from components.methods.losses import across_views, entropies, l2_normalize, sinkhorn
from components.methods.method import Batch, Method, MethodConfig
from components.methods.multicrop import check_local_size, forward_by_size, local_side
from components.models.backbone import Backbone
from components.models.heads import mlp
from components.models.memory import Queue
from components.training.optim import LARS, Cosine, Optimizer


class SwAVConfig(MethodConfig):
    """Defaults: the README's 800 epochs of batches of 4,096. Batches of 256: queue 3840, queue_from 15 / 200."""

    hidden: int = Field(2048, ge=1)
    dim: int = Field(128, ge=1)
    prototypes: Prototypes = Field(3000, ge=2)
    temperature: float = Field(0.1, gt=0)
    epsilon: float = Field(0.05, gt=0)  # of Sinkhorn; 0.03 if the features collapse (README)
    rounds: int = Field(3, ge=1)
    queue: QueueLength = Field(0, ge=0)  # older features of each global crop, which take part in Sinkhorn; 0: none
    queue_from: Fraction = 15 / 200  # of the run, before it is used
    freeze_prototypes: Fraction = 1 / 800  # of the run: 313 steps, one epoch
    global_crop: FractionRange = (0.14, 1.0)
    local_crop: FractionRange = (0.05, 0.14)
    local_crops: int = Field(6, ge=0)
    local_size: int | None = Field(None, ge=1)  # pixels; None: 96 of 224, to the nearest 8
    color_strength: float = Field(1.0, ge=0)
    blur: Fraction = 0.5
    optimizer: Optimizer = LARS(
        lr=0.3, weight_decay=1e-6, decay_all=True, schedule=Cosine(warmup=10 / 800, end=1e-3)
    )  # 4.8 for 4,096, down to 0.0048; LARC adapts the rate of every parameter


class SwAV(Method):
    num_queued: Tensor  # [], features pushed into each queue so far
    needs_full_batch = "Sinkhorn assigns the whole batch evenly to the prototypes"

    @staticmethod
    def views(config: SwAVConfig, image_size: int) -> list[View]:
        s = config.color_strength
        jitter = Jitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8)
        global_view = View(image_size, crop=config.global_crop, jitter=jitter, gray=0.2, blur=config.blur)
        side = local_side(config.local_size, image_size)
        local_view = View(side, crop=config.local_crop, jitter=jitter, gray=0.2, blur=config.blur)
        return [global_view, global_view, *[local_view] * config.local_crops]

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world_size: int) -> None:  # noqa: ARG004
        if 0 < config.queue < batch_size:
            raise ValueError(
                f"queue {config.queue} is shorter than batch_size {batch_size}; try {4 * batch_size}, or 0"
            )
        if config.queue > photos:
            raise ValueError(
                f"queue {config.queue} is longer than the data ({photos} photos), so that it would hold photos "
                f"twice; allowed: 0, or {batch_size} to {photos}; try {max(batch_size, photos // 4)}"
            )

    def __init__(self, backbone: Backbone, config: SwAVConfig) -> None:
        super().__init__(config)
        if config.local_crops:
            check_local_size(backbone, config.local_size)
        self.backbone = backbone
        self.projector = mlp(backbone.dim, config.hidden, config.dim, bias=True)
        self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        self.queues: Any = nn.ModuleList(Queue(config.queue, config.dim) for _ in range(2 if config.queue else 0))
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.long))
        self.pending_features: list[Tensor] = []  # of this step's global crops, each [2, B, D]
        self.normalize_prototypes()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        self.prototypes.weight.copy_(l2_normalize(self.prototypes.weight))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = l2_normalize(self.projector(forward_by_size(self.backbone, batch)))  # [V·B, D]
        logits = self.prototypes(z).unflatten(0, (len(batch), -1))  # [V, B, K]
        features = z.detach().unflatten(0, (len(batch), -1))[:2]  # [2, B, D]
        codes = torch.stack([self.codes(i, logits[i].detach()) for i in range(2)])  # [2, B, K]
        self.pending_features.append(features)
        loss = across_views(codes, logits, self.config.temperature)
        entropy, usage = entropies(codes[0])
        return {"loss": loss, "entropy": entropy, "prototype_usage": usage}

    @torch.no_grad()
    def codes(self, crop: int, scores: Tensor) -> Tensor:
        """Returns the prototypes assigned to each photo, probabilities [B, K], from this crop's cosines [B, K].

        Each rank adds its share of the queue to the batch that is assigned.
        """
        batch_size = len(scores)
        if self.queues and self.progress >= self.config.queue_from:
            older = self.prototypes(self.queues[crop].items[ranks.rank() :: ranks.world_size()]).to(scores.dtype)
            older = older.masked_fill(
                self.num_queued < self.config.queue, -torch.inf
            )  # ignored until the queue is full
            scores = torch.cat([older, scores])
        return sinkhorn(scores, self.config.epsilon, self.config.rounds)[-batch_size:]

    def after_backward(self) -> None:
        if self.progress < self.config.freeze_prototypes:
            self.prototypes.weight.grad = None

    def after_step(self) -> None:
        self.normalize_prototypes()
        if self.queues:
            features = torch.cat(self.pending_features, 1)
            for queue, of_crop in zip(self.queues, features, strict=True):
                queue.push(ranks.gather(of_crop.contiguous()))
            self.num_queued += features.shape[1] * ranks.world_size()
        self.pending_features.clear()

    def keep(self) -> Backbone:
        return self.backbone
