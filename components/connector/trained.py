"""Which weights of the language model are trained beside the projector: none, low-rank updates (LoRA), or all.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, https://arxiv.org/abs/2106.09685, by the library
peft. Only the language model gets them: peft's "all-linear" on the whole model would change the vision tower too.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import LoraConfig, LoraModel
from pydantic import Field
from torch import nn

from components.config import Strict

Trained = Literal["projector", "lora", "all"]
# the language model's peak rates. lora: measured (benchmarks/eyes.md); all: between PaliGemma's and nanoVLM's
RATES: dict[Trained, float] = {"projector": 0.0, "lora": 2e-3, "all": 5e-5}


class LoRA(Strict):
    """The update of a weight [out, in] is alpha / rank · B · A, with A [rank, in] random and B [out, rank] zero."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)


def unfreeze(vlm: Any, trained: Trained, lora: LoRA, seed: int) -> LoraModel | None:
    """Makes weights of the language model trainable. Returns what `merge` needs: the adapter of "lora", or None."""
    if trained == "all":
        vlm.model.language_model.requires_grad_(requires_grad=True)
        vlm.lm_head.requires_grad_(requires_grad=True)
    return add_lora(vlm.model.language_model, lora, seed) if trained == "lora" else None


def add_lora(language_model: Any, lora: LoRA, seed: int) -> LoraModel:
    """Gives all linear layers of the model trainable updates, in place. Returns what `merge` needs."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear")  # type: ignore[arg-type]
    return LoraModel(language_model, settings, "default")


def merge(adapter: LoraModel | None) -> None:
    """Adds the updates to the weights, in place, so that a stock class holds the model."""
    if adapter is not None:
        adapter.merge_and_unload()


def trained_weights(vlm: Any) -> dict[str, nn.Parameter]:
    """Returns the trainable weights of the language model and its head, by name. A tied head is listed once."""
    named = vlm.named_parameters()
    parts = ("model.language_model.", "lm_head.")
    return {name: weight for name, weight in named if weight.requires_grad and name.startswith(parts)}
