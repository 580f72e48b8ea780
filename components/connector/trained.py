"""Which weights of the language model are trained beside the projector: none, low-rank updates (LoRA), or all.

Only the language model gets updates: peft's "all-linear" on the whole model would change the vision tower too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from components.training.lora import LoRA, add_lora

if TYPE_CHECKING:
    from peft import LoraModel

Trained = Literal["projector", "lora", "all"]
# the language model's peak rates. lora: measured (benchmarks/eyes.md); all: between PaliGemma's and nanoVLM's
RATES: dict[Trained, float] = {"projector": 0.0, "lora": 2e-3, "all": 5e-5}


def unfreeze(vlm: Any, trained: Trained, lora: LoRA, seed: int) -> LoraModel | None:
    """Makes weights of the language model trainable. Returns what `merge` needs: the adapter of "lora", or None."""
    if trained == "all":
        vlm.model.language_model.requires_grad_(requires_grad=True)
        vlm.lm_head.requires_grad_(requires_grad=True)
    return add_lora(vlm.model.language_model, lora, seed) if trained == "lora" else None


def trained_weights(vlm: Any) -> dict[str, nn.Parameter]:
    """Returns the trainable weights of the language model and its head, by name. A tied head is listed once."""
    named_parameters = vlm.named_parameters()
    parts = ("model.language_model.", "lm_head.")
    return {name: weight for name, weight in named_parameters if weight.requires_grad and name.startswith(parts)}
