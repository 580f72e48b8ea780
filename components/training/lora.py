"""Low-rank updates of frozen weights (LoRA), by the library peft.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from components.config import Strict

if TYPE_CHECKING:
    from peft import LoraModel


class LoRA(Strict):
    """The update of a weight [out, in] is alpha / rank · B · A, with A [rank, in] random and B [out, rank] zero."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)


def add_lora(model: Any, lora: LoRA, seed: int, targets: str | Sequence[str] = "all-linear") -> LoraModel:
    """Freezes the model and gives linear layers of it trainable updates, in place. Returns what `merge` needs.

    targets: the last parts of the names of these layers. Raises ValueError if no layer has one of them.
    """
    from peft import LoraConfig, LoraModel  # which takes half a second

    torch.manual_seed(seed)
    names = targets if isinstance(targets, str) else list(targets)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
    return LoraModel(model, settings, "default")


def merge(adapter: LoraModel | None) -> None:
    """Adds the updates to the weights, in place, so that a stock class holds the model."""
    if adapter is not None:
        adapter.merge_and_unload()
