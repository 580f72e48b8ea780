"""Heads, predictors and decoders: trainable modules on top of a backbone that are dropped after pretraining."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from components.models.norm import BatchNorm1d


def mlp(
    *dims: int,
    norm: bool = True,
    bias: bool | None = None,
    last_norm: Literal["none", "plain", "scale"] = "none",
    last_bias: bool | None = None,
) -> nn.Sequential:
    """Returns linear layers with the widths `dims`, with batch norm (if `norm`) and ReLU after all but the last.

    bias, last_bias: whether the hidden layers and the last one have a bias; by default those without batch norm do.
    last_norm: what follows the last layer: "none", batch norm without scale and shift ("plain"), or batch norm with a
    scale and no shift ("scale", as in SimCLR's code).
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(dims[:-1]):
        layers.append(nn.Linear(width_in, width_out, bias=not norm if bias is None else bias))
        if norm:
            layers.append(BatchNorm1d(width_out))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(dims[-2], dims[-1], bias=last_norm == "none" if last_bias is None else last_bias))
    if last_norm != "none":
        layers.append(BatchNorm1d(dims[-1], affine=last_norm == "scale"))
    if last_norm == "scale":
        layers[-1].bias.requires_grad_(False)  # noqa: FBT003
    return nn.Sequential(*layers)


class Blocks(nn.Module):
    """Pre-norm transformer blocks and a final norm, as in a ViT, initialized as in MAE: [B, M, D] -> [B, M, D].

    visible: bool [B, M], the tokens that the others may attend to (all, if None).
    Raises ValueError if width is not a multiple of heads.
    """

    compiled_whole = True  # torch.compile skips a single nn.TransformerEncoderLayer

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}; try {-(-width // heads) * heads}")
        block = partial(nn.TransformerEncoderLayer, width, heads, 4 * width, dropout=0.0, activation="gelu")
        self.layers = nn.ModuleList(block(layer_norm_eps=1e-6, batch_first=True, norm_first=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(init_linear)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=None if visible is None else ~visible)
        return self.norm(x)


@torch.no_grad()
def init_linear(module: nn.Module) -> None:
    """Initializes a linear layer with Xavier weights and biases of 0, as MAE's decoder (models_mae.py).

    For `module.apply`; other modules stay as they are.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def sincos(side: int, dim: int) -> Tensor:
    """Returns fixed position embeddings of a grid of side² patches, row by row: float32 [side², dim].

    As in MoCo v3 and MAE (appendix A.1): the first half of the dimensions is for the column, the second for the row.
    Each half has sines, then cosines, of the position times 10000^(-i / (dim / 4)).
    Raises ValueError if dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine positions need a width that is a multiple of 4, not {dim}")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = (axis.flatten().double() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    angles = [position[:, None] * frequencies for position in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()


class PrototypeHead(nn.Module):
    """DINO's head: an MLP ends in a bottleneck, and the logits are its cosines with each prototype.

    Caron et al., 2021, appendix C, and dino/vision_transformer.py: weights have a truncated normal distribution with a
    standard deviation of 0.02, biases are 0. Prototypes are weight-normalized with a fixed gain of 1, so that all have
    the same length. norm: batch norm after each hidden layer (DINO's --use_bn_in_head).
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int, *, norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in in (width, hidden):
            layers += [nn.Linear(width_in, hidden), *([BatchNorm1d(hidden)] if norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits in -1 … 1: [B, width] -> [B, prototypes]."""
        x = nn.functional.normalize(self.mlp(x), dim=-1)
        return nn.functional.linear(x, nn.functional.normalize(self.last.weight, dim=-1))
