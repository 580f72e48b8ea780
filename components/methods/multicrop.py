"""A few large crops of a picture, and many small ones that cost little: one forward for each size.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020, section 3.2.
https://arxiv.org/abs/2006.09882
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from components.models.backbone import Backbone, ViT


def local_side(local_size: int | None, image_size: int) -> int:
    """Pixels of a local crop; None: 96 of 224, to the nearest 8."""
    return local_size or max(8, round(image_size * 96 / 224 / 8) * 8)


def whole_patches(backbone: Backbone, local_size: int | None) -> None:
    """Raises ValueError where local crops are not a whole number of the backbone's patches."""
    if isinstance(backbone, ViT):
        side, patch = local_side(local_size, backbone.config.image_size), backbone.config.patch_size
        if side % patch:
            raise ValueError(
                f"local_size {side} is not a multiple of the backbone's patch_size {patch}; "
                f"try {max(1, round(side / patch)) * patch}"
            )


def by_size(net: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """One forward for all neighboring views of one size: [V·B, …] in the order of `views`."""
    return torch.cat([net(torch.cat(list(same))) for _, same in groupby(views, lambda view: view.shape[-1])])
