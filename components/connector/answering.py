"""Questions are put as a user puts them: a picture and a sentence to the stock processor, then greedy generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor


def load_vlm(folder: Path) -> tuple[Any, Any]:
    """The model and processor that connect saved. Raises ValueError if the folder holds none."""
    wanted = ("config.json", "processor_config.json", "model*.safetensors")  # large models come in shards
    if missing := [name for name in wanted if not list(folder.glob(name))]:
        raise ValueError(f"{folder} holds no model: {', '.join(missing)} missing; run the connect stage first")
    model: Any = PaliGemmaForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
    return model.eval(), PaliGemmaProcessor.from_pretrained(folder)


@torch.inference_mode()
def answers(
    model: Any, processor: Any, pictures: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int
) -> list[str]:
    """One answer a picture and question, in one batch."""
    inputs = processor(
        images=[[picture] for picture in pictures],
        text=[processor.image_token + question for question in questions],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    inputs.pop("labels")  # all of them "ignore": a loss of them is nan
    inputs = inputs.to(model.device)
    out = model.generate(**inputs, max_new_tokens=max_new_tokens)  # token_type_ids among them: the prompt is a prefix
    said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]
