"""Encodes a batch chunk by chunk, with gradient checkpointing, so that it may be larger than the device's memory.

Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021.
https://arxiv.org/abs/2101.06983 (GradCache): representations of all chunks first, then the loss over all of them, then
each chunk once more with its share of the gradient. Recomputing every chunk when its gradient arrives is exactly that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def encode(encoder: Any, pixels: Tensor, chunk: int) -> Tensor:
    """encoder(pixels), `chunk` images at a time (0: all at once); keeps the activations of one chunk."""
    if not chunk:
        return encoder(pixels)
    return torch.cat([checkpoint(encoder, part, use_reentrant=False) for part in pixels.split(chunk)])


def must_not_mix(encoder: nn.Module, chunk: int) -> None:
    """Raises ValueError if an image's features depend on the others in its chunk."""
    if chunk and any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        raise ValueError(
            f"chunk {chunk} would change the features, because the backbone's batch norm uses all images; "
            f"allowed: 0; try a ViT, or a smaller batch_size"
        )
