"""SimCLR: contrast two views of each photo with all other photos of the batch.

v1: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.
https://arxiv.org/abs/2002.05709
v2: Chen et al., Big Self-Supervised Models are Strong Semi-Supervised Learners, NeurIPS 2020.
https://arxiv.org/abs/2006.10029 (a third layer in the head).
Both heads follow the official code (model_util.py, from its first version on): batch norm after each layer, the last
with a scale and no bias.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from components.config import Fraction, FractionRange
from components.data.augment import Jitter, View
from components.data.distortions import Distortion
from components.methods.losses import nt_xent
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone
from components.models.chunks import encode, must_not_mix
from components.models.heads import mlp
from components.models.resnet import zero_init_residual
from components.training.optim import LARS, Cosine, Optimizer


def _each_once(names: tuple[Distortion, ...]) -> tuple[Distortion, ...]:
    if len(set(names)) < len(names):
        raise ValueError("each distortion is named once")
    return names


class SimCLRConfig(MethodConfig):
    """Defaults: v1, sections 2.1 and 4, appendix A; the rate for small batches (B.1): lr 1.2, scaling sqrt."""

    head: Literal["none", "linear", "v1", "v2"] = "v1"  # no layer, one, two or three
    hidden: int = Field(2048, ge=1)  # section 4.2: the width of ResNet-50
    dim: int = Field(128, ge=1)  # section 2.1
    temperature: float = Field(0.1, gt=0)  # table 5; 0.5 for CIFAR-10 (B.9)
    crop: FractionRange = (0.08, 1.0)  # appendix A; (1, 1) is the whole photo, whatever its aspect ratio
    flip: Fraction = 0.5  # appendix A
    color_strength: float = Field(1.0, ge=0)  # 0.5 for small images (B.9)
    gray: Fraction = 0.2  # appendix A
    blur: Fraction = 0.5  # 0 for small images (B.9)
    distort: Annotated[tuple[Distortion, ...], AfterValidator(_each_once)] = ()  # section 3.1: studied, and left out
    chunk: int = Field(0, ge=0)  # photos encoded at a time, 0: all; for a batch that does not fit on the device
    optimizer: Optimizer = LARS(  # section 2.1; 10 of 100 epochs; lars_optimizer.py
        lr=0.3, weight_decay=1e-6, classic_momentum=True, schedule=Cosine(warmup=0.1)
    )


class SimCLR(Method):
    needs_full_batch = "the other photos of the batch are the negatives; set chunk instead"

    @staticmethod
    def views(config: SimCLRConfig, image_size: int) -> tuple[View, View]:
        s = config.color_strength
        jitter = Jitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8)
        view = View(
            image_size,
            crop=None if config.crop == (1.0, 1.0) else config.crop,
            flip=config.flip,
            jitter=jitter,
            gray=config.gray,
            blur=config.blur,
            blur_kernel="tenth",
            distort=config.distort,
        )
        return view, view

    @staticmethod
    def check(config: Any, photos: int, batch_size: int, world_size: int) -> None:  # noqa: ARG004
        if batch_size // world_size < 2:
            raise ValueError(
                f"batch_size {batch_size} over {world_size} processes leaves no other photo as a negative; try 256"
            )

    def __init__(self, backbone: Backbone, config: SimCLRConfig) -> None:
        super().__init__(config)
        must_not_mix(backbone, config.chunk)
        self.backbone = backbone
        zero_init_residual(backbone)
        self.projector: nn.Module = nn.Identity()
        if config.head != "none":
            hidden = [config.hidden] * {"linear": 0, "v1": 1, "v2": 2}[config.head]
            self.projector = mlp(backbone.dim, *hidden, config.dim, last_norm="scale")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features = encode(self.backbone, torch.cat(list(batch)), self.config.chunk)  # [2B, D]
        a, b = self.projector(features).chunk(2)
        return {"loss": nt_xent(a, b, self.config.temperature)}

    def keep(self) -> Backbone:
        return self.backbone
