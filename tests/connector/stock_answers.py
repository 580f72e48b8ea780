"""Answers and settings that a user gets from the folder of a saved model. Imports transformers and not this project."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

TOKENS = 8
IMAGE = ("image_seq_length", "image_token", "image_token_id", "patch_size", "num_additional_image_tokens")


def settings(model: Any, processor: Any) -> dict[str, Any]:
    """Returns everything that the model's answers depend on, except its weights, as JSON stores it."""
    tokenizer, text = processor.tokenizer, model.config.text_config
    names = (
        *("padding_side", "truncation_side", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
        *("add_bos_token", "add_eos_token", "model_max_length", "clean_up_tokenization_spaces"),
        *("split_special_tokens", "model_input_names", "all_special_tokens"),
    )
    pixels = processor.image_processor.to_dict()
    del pixels["image_processor_type"]  # ViTImageProcessorPil where there is no torchvision
    values: dict[str, Any] = {
        "config": {name: value for name, value in model.config.to_dict().items() if not isinstance(value, dict)},
        "text config": text.to_dict(),
        "vision config": model.config.vision_config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "pixels": pixels,
        "image": [getattr(processor, name, None) for name in IMAGE],
        "chat template": processor.chat_template,
        "tokenizer": {name: getattr(tokenizer, name, None) for name in names},
        "vocabulary": tokenizer.get_vocab(),
        "attention": (model.config._attn_implementation, text._attn_implementation),
        "model": (str(model.dtype), model.training, len(model.state_dict())),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
    }
    for config in ("config", "text config", "vision config"):
        for name in ("_name_or_path", "architectures", "dtype"):  # a loaded model's own; the real dtype is below
            values[config].pop(name, None)
    return json.loads(json.dumps(values, default=str))


def chat(photo: Any, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": question}]}]


@torch.inference_mode()
def chatted(model: Any, processor: Any, photos: list[Any], questions: list[str]) -> list[str]:
    """Answers to chats through the processor."""
    chats = [chat(photo, question) for photo, question in zip(photos, questions, strict=True)]
    options: dict[str, Any] = {"return_dict": True, "return_tensors": "pt", "processor_kwargs": {"padding": True}}
    inputs = processor.apply_chat_template(chats, tokenize=True, **options)
    ids = model.generate(**inputs, max_new_tokens=TOKENS)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


@torch.inference_mode()
def processed(model: Any, processor: Any, photos: list[Any], questions: list[str]) -> list[str]:
    """Answers through PaliGemma's processor, as its documentation says to call it."""
    prompts = ["<image>" + question for question in questions]
    inputs = processor(images=[[photo] for photo in photos], text=prompts, padding=True, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=TOKENS)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def piped(ask: Any, photos: list[Any], questions: list[str], batch_size: int) -> list[str]:
    """Answers to chats through the pipeline."""
    chats = [chat(photo, question) for photo, question in zip(photos, questions, strict=True)]
    results = ask(text=chats, max_new_tokens=TOKENS, return_full_text=False, batch_size=batch_size)
    return [result[0]["generated_text"].strip() for result in results]


def main(folder: Path) -> None:
    """`folder` holds the model and photos.json: [path, question] of each photo."""
    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    processor = AutoProcessor.from_pretrained(folder / "model")
    paths, questions = zip(*json.loads((folder / "photos.json").read_text()), strict=True)
    photos = [Image.open(path).convert("RGB") for path in paths]
    ask = pipeline("image-text-to-text", model=str(folder / "model"))
    pairs = list(zip(photos, questions, strict=True))
    answers = {
        "chats, one at a time": [chatted(model, processor, [photo], [question])[0] for photo, question in pairs],
        "chats, a batch": chatted(model, processor, photos, list(questions)),
        "pipeline, one at a time": piped(ask, photos, list(questions), 1),
        "pipeline, a batch": piped(ask, photos, list(questions), 8),
    }
    if model.config.model_type == "paligemma":  # whose processor completes the prompt
        texts: dict[str, Any] = {"text": "<image>" + questions[0], "max_new_tokens": TOKENS, "return_full_text": False}
        first = ask(images=paths[0], **texts)[0]["generated_text"].strip()
        answers |= {
            "processor, one at a time": [
                processed(model, processor, [photo], [question])[0] for photo, question in pairs
            ],
            "processor, a batch": processed(model, processor, photos, list(questions)),
            "pipeline, the first by path": [first, *answers["pipeline, a batch"][1:]],
        }
    print(json.dumps([answers, settings(model, processor)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
