"""Multi-crop: a few large and many small crops of each photo, with one forward pass for each size.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020, section 3.2.
https://arxiv.org/abs/2006.09882
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from components.models.backbone import Backbone, require_size


def local_side(local_size: int | None, image_size: int) -> int:
    """Returns the side of a local crop in pixels; None: 96 for images of 224 pixels, in proportion, a multiple of 8."""
    return local_size or max(8, round(image_size * 96 / 224 / 8) * 8)


def check_local_size(backbone: Backbone, local_size: int | None) -> None:
    """Raises ValueError if the side of the local crops is not a multiple of the backbone's patch size."""
    side, patch = local_side(local_size, backbone.config.image_size), getattr(backbone.config, "patch_size", 1)
    require_size(backbone, "local_size", side)
    if side % patch:
        raise ValueError(
            f"local_size {side} is not a multiple of the backbone's patch_size {patch}; "
            f"try {max(1, round(side / patch)) * patch}"
        )


def forward_by_size(net: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Returns net's outputs [V·B, …] in the order of `views`, with one forward pass for neighboring views of a size."""
    return torch.cat([net(torch.cat(list(group))) for _, group in groupby(views, lambda view: view.shape[-1])])
