"""Answers questions about photos as a user would: through the stock processor, with greedy generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from components.connector.collate import chat


def load_vlm(folder: Path) -> tuple[Any, Any]:
    """Returns the model and processor that connect saved. Raises ValueError if the folder holds none."""
    patterns = ("config.json", "processor_config.json", "model*.safetensors")  # large models come in shards
    if missing := [name for name in patterns if not list(folder.glob(name))]:
        raise ValueError(f"{folder} holds no model: {', '.join(missing)} missing; run the connect stage first")
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
    return model.eval(), AutoProcessor.from_pretrained(folder)


@torch.inference_mode()
def generate_answers(
    model: Any, processor: Any, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Returns the answer to each question about the image at the same place, computed in one batch."""
    inputs = processor.apply_chat_template(
        [chat(question, image) for image, question in zip(images, questions, strict=True)],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    inputs.pop("labels", None)  # PaliGemma's: all are IGNORE, and a loss of them would be nan
    inputs = inputs.to(model.device)
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens)  # token_type_ids mark PaliGemma's prompt as a prefix
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
