"""Small trainable pieces that sit on a backbone and are thrown away after pretraining."""

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
    """Linear layers through `dims`, batch norm (if asked) and ReLU between them.

    bias, last_bias: of the hidden layers, of the last one; by default where no batch norm follows. last_norm: after the
    last layer "none", batch norm without scale and shift ("plain"), or with a scale alone ("scale", SimCLR's code).
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(dims[:-1]):
        hidden = [nn.Linear(a, b, bias=not norm if bias is None else bias), *([BatchNorm1d(b)] if norm else [])]
        layers += [*hidden, nn.ReLU(inplace=True)]
    layers.append(nn.Linear(dims[-2], dims[-1], bias=last_norm == "none" if last_bias is None else last_bias))
    if last_norm != "none":
        layers.append(BatchNorm1d(dims[-1], affine=last_norm == "scale"))
    if last_norm == "scale":
        layers[-1].bias.requires_grad_(False)  # noqa: FBT003
    return nn.Sequential(*layers)


class Blocks(nn.Module):
    """Pre-norm transformer blocks and a last norm, as a ViT's, started as MAE's: [B, M, D] -> [B, M, D].

    seen: bool [B, M], the tokens that any of them may look at. Raises ValueError if width is not a multiple of heads.
    """

    compiled_whole = True  # torch.compile passes over a single nn.TransformerEncoderLayer

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}; try {-(-width // heads) * heads}")
        block = partial(nn.TransformerEncoderLayer, width, heads, 4 * width, dropout=0.0, activation="gelu")
        self.layers = nn.ModuleList(block(layer_norm_eps=1e-6, batch_first=True, norm_first=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(plain_start)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=None if seen is None else ~seen)
        return self.norm(x)


@torch.no_grad()
def plain_start(module: nn.Module) -> None:
    """Xavier weights and no bias, as MAE's decoder (models_mae.py): for `module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def sincos(side: int, dim: int) -> Tensor:
    """Fixed positions of a grid of side² places, row by row: float32 [side², dim]. MoCo v3, MAE (appendix A.1).

    Half the dimensions for the column, half for the row; in each half sines, then cosines, of 10000^(-i / (dim / 4)).
    Raises ValueError if dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine positions need a width that is a multiple of 4, not {dim}")
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = (place.flatten().double() for place in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    angles = [place[:, None] * rates for place in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()


class PrototypeHead(nn.Module):
    """DINO's head: an MLP down to a bottleneck, whose cosine with each prototype is a logit.

    Caron et al., 2021, appendix C, and dino/vision_transformer.py: weights start truncated normal with 0.02, biases at
    0; prototypes are weight-normalized with a gain of 1 that is not learned, so that none is louder than another.
    norm: batch norm after each hidden layer (its --use_bn_in_head).
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int, *, norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((width, hidden), (hidden, hidden)):
            layers += [nn.Linear(a, b), *([BatchNorm1d(b)] if norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, prototypes], in -1 … 1."""
        x = nn.functional.normalize(self.mlp(x), dim=-1)
        return nn.functional.linear(x, nn.functional.normalize(self.last.weight, dim=-1))
