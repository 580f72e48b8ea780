"""Small trainable pieces that sit on a backbone and are thrown away after pretraining."""

from itertools import pairwise

from torch import nn


def mlp(*dims: int, norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear layers through `dims`, batch norm (if asked) and ReLU between them; the last one is only linear.

    last_norm: batch norm without a shift after the last layer too (SimCLR's code: `model_util.py`, projection head).
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(dims[:-1]):
        layers += [nn.Linear(a, b, bias=not norm), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(dims[-2], dims[-1], bias=not last_norm))
    if last_norm:
        final = nn.BatchNorm1d(dims[-1])
        nn.init.zeros_(final.bias)
        final.bias.requires_grad_(False)  # noqa: FBT003
        layers.append(final)
    return nn.Sequential(*layers)
