"""ViTs: transformers' ViTModel, with access to its parts.

Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import ViTConfig, ViTModel
from transformers.utils.logging import disable_progress_bar

from components.models.heads import sincos
from components.models.interface import Backbone, ViTBackbone, transformer_layers

AS_BUILT = ("hidden_act", "intermediate_size", "num_channels", "qkv_bias")  # fixed in this class

disable_progress_bar()  # one bar a saved file is noise


class ViT(Backbone):
    """transformers' ViTModel without its pooler; `AutoModel.from_pretrained(folder)` loads what it saves."""

    config: ViTBackbone

    def __init__(self, config: ViTBackbone) -> None:
        super().__init__(config)
        self.pool = config.pool
        shape = ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.trunk = ViTModel(shape, add_pooling_layer=False)
        self.dim = config.width
        # Xavier for each matrix, as the original ViT; MAE draws q, k and v as one (DECISIONS.md says what that cost). A
        # standard deviation of 0.02, as in transformers, suits a width of 768; a width of 128 stays at chance
        for weight in self.trunk.parameters():
            if weight.ndim in (2, 4):
                nn.init.xavier_uniform_(weight.flatten(1))

    def embed(self, pixels: Tensor, hidden: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D]: class token and patches, with their positions, as the first block sees them.

        hidden: bool [B, N], patches in whose place `mask_token` [1, 1, D] stands. Other sizes than image_size
        interpolate the positions.
        """
        embeddings = self.trunk.embeddings
        height, width = (side // self.config.patch_size for side in pixels.shape[-2:])
        x = embeddings.patch_embeddings(self.normalize(pixels))  # [B, N, D]
        if hidden is not None:
            assert mask_token is not None
            x = torch.where(hidden[:, :, None], mask_token.to(x.dtype), x)
        x = torch.cat([embeddings.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self._positions(height, width)

    def _positions(self, height: int, width: int) -> Tensor:
        """Returns the positions of the class token and of height × width patches: [1, 1 + N, D].

        What transformers interpolates, as one matrix product: its gradient is summed in a fixed order on a GPU too.
        """
        learned = self.trunk.embeddings.position_embeddings
        if height == width == self.side:
            return learned
        matrix = bicubic(self.side, height, width, learned.device, learned.dtype)
        return torch.cat([learned[:, :1], matrix @ learned[:, 1:]], dim=1)

    def encode(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Returns tokens from `embed`, or a subset of them, after all blocks and the norm: [B, M, D] -> [B, M, D].

        visible: bool [B, M], the tokens that the others may attend to; the outputs of the rest are meaningless.
        """
        return self.trunk.layernorm(self._run_layers(x, self.trunk.layers, visible))

    def _run_layers(self, x: Tensor, layers: nn.ModuleList, visible: Tensor | None = None) -> Tensor:
        mask = None if visible is None else visible[:, None, None, :]  # [B, heads, from, to]
        self.trunk.config._attn_implementation = attention(x.device, masked=visible is not None)
        for layer in layers:
            x = layer(x, mask)
        return x

    @torch.no_grad()
    def fix_positions(self) -> None:
        """Sines in place of learned positions, and none for the class token, frozen: MAE (appendix A.1), I-JEPA."""
        positions = self.trunk.embeddings.position_embeddings  # [1, 1 + N, D]
        positions[:, 0] = 0
        positions[:, 1:] = sincos(self.side, self.dim)
        positions.requires_grad_(False)  # noqa: FBT003

    @property
    def prefix(self) -> int:
        return 1

    @property
    def side(self) -> int:
        """Patches in a row of a whole image."""
        return self.config.image_size // self.config.patch_size

    def sequence(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D], class token first."""
        return self.encode(self.embed(pixels))

    def class_token(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], what `sequence` has first, to rounding.

        The last block computes this token alone, from the keys and values of all, as no other output is needed. That is
        10 / 12 of a block's work: 7 % of a ViT's of depth 12, 28 % of one's of depth 3.
        """
        last = self.trunk.layers[-1]
        x = self._run_layers(self.embed(pixels), self.trunk.layers[:-1])
        normed = last.layernorm_before(x)
        heads = (-1, last.attention.head_dim)
        query = last.attention.q_proj(normed[:, 0]).unflatten(-1, heads)[:, :, None]  # [B, heads, 1, D / heads]
        key = last.attention.k_proj(normed).unflatten(-1, heads).transpose(1, 2)
        value = last.attention.v_proj(normed).unflatten(-1, heads).transpose(1, 2)
        weights = (last.attention.scaling * query @ key.transpose(2, 3)).softmax(-1)
        x = x[:, 0] + last.attention.o_proj((weights @ value).flatten(1))
        return self.trunk.layernorm(x + last.mlp(last.layernorm_after(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.pool == "class" else x[:, 1:].mean(1)

    def whole(self, pixels: Tensor) -> Tensor:
        return self.class_token(pixels) if self.pool == "class" else self._pooled(self.sequence(pixels))

    def _blocks(self, pixels: Tensor) -> list[Tensor]:
        x, features = self.embed(pixels), []
        self.trunk.config._attn_implementation = attention(x.device)
        for layer in self.trunk.layers:
            x = layer(x, None)
            features.append(self._pooled(self.trunk.layernorm(x)))
        return features

    def as_stock(self) -> Self:
        self.pool = "class"
        return super().as_stock()

    def whole_and_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.sequence(pixels)
        return self._pooled(x), x[:, 1:]

    def _save(self, folder: Path) -> None:
        self.trunk.config.pool, self.trunk.config.patches = self.pool, self.patches
        self.trunk.save_pretrained(folder)

    def layers(self) -> dict[str, int]:
        return transformer_layers(self, "trunk.layers", self.config.depth)

    def untrained(self) -> ViT:
        return ViT(self.config)


def can_hold(config: Any) -> bool:
    """True if ViT computes what a ViTModel of this configuration does."""
    vit_config = ViTConfig(hidden_size=config.hidden_size, intermediate_size=4 * config.hidden_size)
    return all(getattr(config, name) == getattr(vit_config, name) for name in AS_BUILT)


@cache
def bicubic(side: int, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns the matrix that interpolates a grid of side² values to height × width: [height · width, side²]."""
    with torch.inference_mode(mode=False):  # the matrix is cached, and training cannot use an inference tensor
        grids = torch.eye(side**2, dtype=dtype).view(side**2, 1, side, side)
        return interpolate(grids, (height, width), mode="bicubic").flatten(1).T.to(device, non_blocking=True)


def attention(device: torch.device, *, masked: bool = False) -> str:
    """Returns the name of transformers' attention to use: the fused one, or "eager" for training in bf16 on a CPU.

    There the backward pass of the fused one takes half of a ViT's step.
    masked: there is a mask of bool, which "eager" would add to the logits; so the fused one is used.
    """
    slow = device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return "eager" if slow and not masked else "sdpa"
