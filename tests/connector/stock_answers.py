"""Answers and settings that a user gets from the folder of a saved model. Imports transformers and not this project."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import pipeline

TOKENS = 3
LOGITS = "stock.safetensors"  # where the logits are saved, beside the model
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
def chatted(
    model: Any, processor: Any, photos: Sequence[Any], questions: Sequence[str]
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Returns the tokens of the answers to chats through the processor, up to the end, and their logits [T, V]."""
    chats = [chat(photo, question) for photo, question in zip(photos, questions, strict=True)]
    options: dict[str, Any] = {"return_dict": True, "return_tensors": "pt", "processor_kwargs": {"padding": True}}
    inputs = processor.apply_chat_template(chats, tokenize=True, **options)
    steps = model.generate(**inputs, max_new_tokens=TOKENS, return_dict_in_generate=True, output_logits=True)
    ids = steps.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    end = processor.tokenizer.eos_token_id
    ids = [row[: row.index(end) + 1] if end in row else row for row in ids]
    logits = torch.stack(steps.logits, 1)  # [B, T, V]
    return ids, [values[: len(row)] for row, values in zip(ids, logits, strict=True)]


def decoded(processor: Any, ids: list[list[int]]) -> list[str]:
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


@torch.inference_mode()
def processed(model: Any, processor: Any, photos: Sequence[Any], questions: Sequence[str]) -> list[str]:
    """Answers through PaliGemma's processor, as its documentation says to call it."""
    prompts = ["<image>" + question for question in questions]
    inputs = processor(images=[[photo] for photo in photos], text=prompts, padding=True, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=TOKENS)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def piped(ask: Any, photos: Sequence[Any], questions: Sequence[str], batch_size: int) -> list[str]:
    """Answers to chats through the pipeline."""
    chats = [chat(photo, question) for photo, question in zip(photos, questions, strict=True)]
    results = ask(text=chats, max_new_tokens=TOKENS, return_full_text=False, batch_size=batch_size)
    return [result[0]["generated_text"].strip() for result in results]


def ask_all_ways(
    folder: Path, pairs: list[tuple[str, str]], own_ways: bool
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Returns answers of the model in `folder`, by how it was asked, and its settings. Writes stock.safetensors there.

    pairs: path and question of each photo. The file has the logits [T, V] of each answer in a batch, and of the first
    question asked alone. own_ways: also those that only PaliGemma's processor has, as it completes the prompt.
    """
    ask: Any = pipeline("image-text-to-text", model=str(folder))
    model, processor = ask.model, ask.processor
    paths, questions = zip(*pairs, strict=True)
    photos = [Image.open(path).convert("RGB") for path in paths]
    ids, logits = chatted(model, processor, photos, questions)
    _, alone = chatted(model, processor, photos[:1], questions[:1])
    answers = {
        "chats, a batch": decoded(processor, ids),
        "pipeline, one at a time": piped(ask, photos, questions, 1),
        "pipeline, a batch": piped(ask, photos, questions, 8),
    }
    save_file({**{f"batch {row}": x for row, x in enumerate(logits)}, "alone 0": alone[0]}, folder / LOGITS)
    if own_ways and model.config.model_type == "paligemma":
        texts: dict[str, Any] = {"text": "<image>" + questions[0], "max_new_tokens": TOKENS, "return_full_text": False}
        first = ask(images=paths[0], **texts)[0]["generated_text"].strip()
        answers |= {
            "processor, a batch": processed(model, processor, photos, questions),
            "pipeline, the first by path": [first, *answers["pipeline, a batch"][1:]],
        }
    return answers, settings(model, processor)


def main(folder: Path) -> None:
    """`folder` holds models.json: pairs of a path and a question, by the folder of the model that they are for."""
    models = json.loads((folder / "models.json").read_text())
    first = next(iter(models))
    print(json.dumps({name: ask_all_ways(folder / name, pairs, name == first) for name, pairs in models.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
