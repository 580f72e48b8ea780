"""The loss of connect: cross entropy of the answer and EOS, by the weights that `unfreeze` left trainable.

PaliGemma, section 3.2 (https://arxiv.org/abs/2407.07726): a loss on the prefix hurts, so it has none. In training all
tokens of a batch's answers count the same, as in transformers; big_vision takes the mean over each answer first, with
which captions, and all that is in them, are learned more slowly (benchmarks/eyes.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components.connector.packing import IGNORE
from components.connector.trained import trained_weights
from components.connector.vlm import trained_layer
from components.precision import uses_bf16, with_bf16_weights
from components.training.objective import Objective

NO_INPUTS = ("labels", "owner", "pixels", "weight")  # of the model


class Connector(Objective):
    """The objective around a stock model; its parameters and its state are those that are trained, and no others.

    Raises ValueError for an attention that cannot express the prefix mask.
    """

    def __init__(self, vlm: Any, processor: Any) -> None:
        super().__init__()
        for config in (vlm.config, vlm.config.text_config):
            attention = getattr(config, "_attn_implementation", None) or ""
            if attention not in ("", "sdpa", "eager"):
                raise ValueError(
                    f"attention {attention!r} ignores the masks of prompts and packed questions; allowed: sdpa, eager"
                )
        self.projector = trained_layer(vlm)
        weights = trained_weights(vlm)
        self.llm = nn.ParameterDict({name.replace(".", "/"): weight for name, weight in weights.items()})
        # in a tuple, so that checkpoints, train() and the optimizer do not reach the frozen weights. The first is saved
        # and computes in fp32, the second computes under autocast
        self.vlms = (vlm, with_bf16_weights(vlm) if uses_bf16() else vlm)
        pixels = processor.image_processor
        self.register_buffer("mean", 255 * torch.tensor(pixels.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(pixels.image_std).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """batch: what Collator returns, pixels, uint8 [rows, 3, S, S], and weight, float32 [questions], or none."""
        losses = self.losses(batch)
        return {"loss": (losses * batch["weight"]).mean() if "weight" in batch else losses.mean()}

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the mean cross entropy of each answer's tokens, float32 [questions]."""
        targets = batch["labels"].roll(-1, 1)  # [B, L], the next token of each place; the last has none
        targets[:, -1] = IGNORE
        is_answer = targets != IGNORE
        vlm = self.vlms[torch.is_autocast_enabled(batch["pixels"].device.type)]
        inputs = {name: value for name, value in batch.items() if name not in NO_INPUTS}
        if vlm.config.text_config._attn_implementation == "eager" and inputs["attention_mask"].ndim == 4:
            inputs["attention_mask"] = _additive_mask(inputs["attention_mask"], vlm.get_input_embeddings().weight.dtype)
        logits = vlm(
            **inputs,
            pixel_values=(batch["pixels"] - self.mean) / self.std,
            logits_to_keep=is_answer,  # 49,152 logits a place are computed only where there is an answer
            use_cache=False,
        ).logits  # [K, V]
        losses = cross_entropy(logits.float(), targets[is_answer], reduction="none")  # [K]
        number = batch["owner"][is_answer] if "owner" in batch else is_answer.nonzero()[:, 0]  # of the question
        tokens = number.bincount()
        return losses.new_zeros(len(tokens)).index_add(0, number, losses) / tokens


def _additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what eager attention adds to its scores. mask: bool, True where attention is allowed."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
