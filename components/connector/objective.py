"""Only the answer is asked for: cross entropy of suffix and EOS, and of all weights only the projector's move.

PaliGemma, section 3.2 (https://arxiv.org/abs/2407.07726): the prefix has no loss, for that hurts. As in big_vision, and
unlike transformers, the mean is taken over each answer's tokens first and then over the batch: a long caption counts
as much as a "yes".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from components.connector.collate import IGNORE
from components.machine import uses_bf16, with_bf16_weights
from components.training.objective import Objective


class Connector(Objective):
    """The loop's Objective around a stock PaliGemma. Its parameters and its state are the projector's alone.

    Raises ValueError for an attention that cannot express the prefix mask.
    """

    def __init__(self, vlm: Any, processor: Any) -> None:
        super().__init__()
        for config in (vlm.config, vlm.config.text_config):
            attention = getattr(config, "_attn_implementation", None) or ""
            if attention not in ("", "sdpa", "eager"):
                raise ValueError(f"attention {attention!r} ignores the prefix mask; allowed: sdpa, eager")
        self.projector = vlm.model.multi_modal_projector
        # in a tuple: neither a checkpoint nor train() nor the optimizer reaches what is frozen. The first is saved and
        # computes in fp32, the second computes under autocast
        self.whole = (vlm, with_bf16_weights(vlm) if uses_bf16() else vlm)
        pixels = processor.image_processor
        self.register_buffer("mean", 255 * torch.tensor(pixels.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(pixels.image_std).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """batch: what Collator makes, and pixels, uint8 [B, 3, S, S]."""
        return {"loss": self.losses(batch).mean()}

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy of each answer's tokens, float32 [B]."""
        targets = batch["labels"].roll(-1, 1)  # [B, L], what each place has to say next; the last says nothing
        targets[:, -1] = IGNORE
        spoken = targets != IGNORE
        logits = self.whole[torch.is_autocast_enabled(batch["pixels"].device.type)](
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            token_type_ids=batch["token_type_ids"],
            pixel_values=(batch["pixels"] - self.mean) / self.std,
            logits_to_keep=spoken,  # 49,152 scores a place are worth having only where there is an answer
            use_cache=False,
        ).logits  # [K, V]
        each = cross_entropy(logits.float(), targets[spoken], reduction="none")  # [K]
        row = spoken.nonzero()[:, 0]
        return each.new_zeros(len(spoken)).index_add(0, row, each) / spoken.sum(1)
