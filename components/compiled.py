"""On a GPU a small operator costs more to start than to run: torch.compile makes few large ones of many.

Where it cannot, for want of a C compiler, torch says so and goes on without. TORCH_COMPILE_DISABLE=1 turns it off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn


def compile_blocks(module: nn.Module, backend: str = "inductor") -> None:
    """In place, for fixed shapes: the blocks of ViTs, which are alike, so that one program serves all, and ResNets.

    One more for each size of views, and for where no gradient is wanted. Names of weights stay.
    """
    from torchvision.models import ResNet
    from transformers.models.vit.modeling_vit import ViTLayer

    _configure()
    for part in module.modules():
        if isinstance(part, ViTLayer | ResNet):
            part.compile(backend=backend, dynamic=False)


@cache
def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """The function, for fixed shapes."""
    _configure()
    return torch.compile(function, backend=backend, dynamic=False)


def _configure() -> None:
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64
