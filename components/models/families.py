"""Families of published vision models, as transformers' classes: what differs between them, in one place.

A family answers where its blocks, its final norm and its positions are, how many tokens come before the patches, which
feature stands for a whole image, and which class classifies images with it. Read in the code of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

Pool = Literal["class", "mean", "class and mean", "pooler"]


@dataclass(frozen=True)
class Family:
    """model: transformers' class of the vision tower. The other strings are attributes of such a model, dotted."""

    model: str
    blocks: str
    norm: str | None  # between the last block and last_hidden_state
    positions: str | None  # learned, one for each patch, after those of the tokens that have any; None: computed
    pool: Pool  # the feature of a whole image, as published
    prefix: Callable[[Any], int]  # config -> tokens before the patches: class, distillation, registers
    pooler: Callable[[Any, Tensor], Tensor] | None = None  # model, last_hidden_state -> the feature "pooler"
    classifier: str | None = None  # transformers' class
    classifier_pool: Pool = "class"  # the feature that this class classifies
    load_options: dict[str, Any] = field(default_factory=dict)  # of from_pretrained
    call_options: dict[str, Any] = field(default_factory=dict)  # of forward, for sizes other than the config's

    @property
    def transformer(self) -> Any:
        """transformers' class of the vision tower."""
        return getattr(transformers, self.model)

    def blocks_of(self, model: Any) -> nn.ModuleList:
        return attrgetter(self.blocks)(model)

    def norm_of(self, model: Any) -> Callable[[Tensor], Tensor]:
        return attrgetter(self.norm)(model) if self.norm else _identity

    def pooled(self, model: Any, tokens: Tensor, pool: Pool) -> Tensor:
        """Returns one vector per image, [B, D] (2·D for "class and mean"), of last_hidden_state [B, prefix + N, D]."""
        if pool == "pooler":
            assert self.pooler is not None
            return self.pooler(model, tokens)
        patches = tokens[:, self.prefix(model.config) :]
        if pool == "mean":
            return patches.mean(1)
        return tokens[:, 0] if pool == "class" else torch.cat([tokens[:, 0], patches.mean(1)], dim=1)


def _identity(x: Tensor) -> Tensor:
    return x


_ANY_SIZE = {"interpolate_pos_encoding": True}
_NO_POOLER = {"add_pooling_layer": False}

_VIT = Family(
    model="ViTModel",
    blocks="layers",
    norm="layernorm",
    positions="embeddings.position_embeddings",
    pool="class",
    prefix=lambda config: 1,  # noqa: ARG005
    classifier="ViTForImageClassification",
    load_options=_NO_POOLER,
    call_options=_ANY_SIZE,
)
_DINOV2 = Family(
    model="Dinov2Model",
    blocks="encoder.layer",
    norm="layernorm",
    positions="embeddings.position_embeddings",
    pool="class",
    prefix=lambda config: 1,  # noqa: ARG005
    classifier="Dinov2ForImageClassification",
    classifier_pool="class and mean",
)
_SIGLIP = Family(
    model="SiglipVisionModel",
    blocks="encoder.layers",
    norm="post_layernorm",
    positions="embeddings.position_embedding.weight",
    pool="pooler",
    prefix=lambda config: 0,  # noqa: ARG005
    pooler=lambda model, tokens: model.head(tokens),
    classifier="SiglipForImageClassification",
    classifier_pool="mean",
    call_options=_ANY_SIZE,
)
_CLIP = Family(
    model="CLIPVisionModel",
    blocks="encoder.layers",
    norm=None,  # the final norm is applied to the class token alone
    positions="embeddings.position_embedding.weight",
    pool="pooler",
    prefix=lambda config: 1,  # noqa: ARG005
    pooler=lambda model, tokens: model.post_layernorm(tokens[:, 0]),
    classifier="CLIPForImageClassification",
    classifier_pool="mean",
    call_options=_ANY_SIZE,
)

# by the model_type in config.json
FAMILIES: dict[str, Family] = {
    "vit": _VIT,
    # read as a ViT: ViTMAEModel hides three quarters of the patches in every forward pass
    "vit_mae": replace(_VIT, pool="mean"),
    "deit": replace(
        _VIT,
        model="DeiTModel",
        prefix=lambda config: 2,  # noqa: ARG005 (class and distillation)
        classifier="DeiTForImageClassification",
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(
        _DINOV2,
        model="Dinov2WithRegistersModel",
        prefix=lambda config: 1 + config.num_register_tokens,
        classifier="Dinov2WithRegistersForImageClassification",
    ),
    "dinov3_vit": Family(
        model="DINOv3ViTModel",
        blocks="model.layer",
        norm="norm",
        positions=None,  # rotary
        pool="class",
        prefix=lambda config: 1 + config.num_register_tokens,
    ),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "ijepa": replace(
        _VIT,
        model="IJepaModel",
        pool="mean",
        prefix=lambda config: 0,  # noqa: ARG005
        classifier="IJepaForImageClassification",
        classifier_pool="mean",
    ),
}
