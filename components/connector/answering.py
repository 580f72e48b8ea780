"""Answers questions about photos as a user would: through the stock processor, with greedy generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer

from components.connector.collate import chat


def load_vlm(folder: Path) -> tuple[Any, Any]:
    """Returns the model and processor that connect saved. Raises ValueError if the folder holds none."""
    patterns = ("config.json", "processor_config.json", "model*.safetensors")  # large models come in shards
    if missing := [name for name in patterns if not list(folder.glob(name))]:
        raise ValueError(f"{folder} holds no model: {', '.join(missing)} missing; run the connect stage first")
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
    return model.eval(), AutoProcessor.from_pretrained(folder)


class AnswerPrinter(TextStreamer):
    """Prints one answer word by word as it is generated, without white space around it, or "(no answer)"."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.begun, self.space = False, ""  # white space is printed only once a word follows it

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002 (its signature)
        text = self.space + text if self.begun else text.lstrip()
        words = text.rstrip()
        print(words, end="", flush=True)
        self.begun, self.space = self.begun or bool(words), text[len(words) :]
        if stream_end:
            print("" if self.begun else "(no answer)", flush=True)


@torch.inference_mode()
def generate_answers(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    max_new_tokens: int,
    streamer: Any = None,
) -> list[str]:
    """Returns the answer to each question about the image at the same place, computed in one batch.

    streamer: an AnswerPrinter, say, which gets each token of a single answer as soon as it is generated.
    """
    inputs = processor.apply_chat_template(
        [chat(question, image) for image, question in zip(images, questions, strict=True)],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    inputs.pop("labels", None)  # PaliGemma's: all are IGNORE, and a loss of them would be nan
    inputs = inputs.to(model.device)
    # token_type_ids mark PaliGemma's prompt as a prefix
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
