"""Assembles a stock vision-language model from a backbone, a Llama-like language model and a new linear projector.

A transformer becomes the tower of a PaliGemma, a CNN that of a FastVLM: `paligemma` and `fast_vlm` say how they differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.models.vit import ViTImageProcessor

from components.connector import fast_vlm, paligemma
from components.connector.towers import features_of, image_size, read_tower, resize, tower_problem

# by the dimensions of the tower's features: [B, N, D] or [B, D, h, w]
CLASSES = {3: paligemma, 4: fast_vlm}
MAX_NEW_TOKENS = 64  # transformers' default includes the prompt, which the image alone would fill


def assemble(backbone: Path, llm: Any, tokenizer: Any, seed: int = 0, size: int | None = None) -> tuple[Any, Any]:
    """Returns a model, frozen except for one new linear layer of its projector, and its processor.

    backbone: a folder that Backbone.save wrote. llm, tokenizer: from load_llm; the tokenizer is changed in place.
    size: pixels of the squares that a CNN sees; None: the backbone's.
    Weights are copied into a new model, because a model that was read from GGUF cannot be saved.
    Raises ValueError if the backbone cannot be a tower (of this size), or if the tokenizer has no end-of-text token.
    """
    if problem := tower_problem(backbone):
        raise ValueError(problem)
    tower = read_tower(backbone)
    images: Any = ViTImageProcessor.from_pretrained(backbone)
    if size:
        resize(tower, images, size)
    features = features_of(tower, image_size(images))
    vlm_module = CLASSES[features.ndim]
    _complete(tokenizer)
    processor = vlm_module.make_processor(images, tokenizer, features)
    torch.manual_seed(seed)
    tower.config._name_or_path = ""  # no path of this machine in the saved config
    if features.ndim == 4:
        tower.config.hidden_size = features.shape[1]  # the projector's inputs, which timm's configuration does not say
    model = vlm_module.make_model(tower.config, _text_config(llm, tokenizer), processor, _options(llm, tokenizer))
    _fill_tower(model.model.vision_tower, tower)
    _fill_llm(model, llm)
    projector = vlm_module.trained_layer(model)
    nn.init.normal_(projector.weight, std=0.02)  # whatever the LLM's initializer_range
    nn.init.zeros_(projector.bias)
    model.generation_config = _generation(tokenizer, vlm_module.TOKENS)
    model.requires_grad_(requires_grad=False)
    projector.requires_grad_(requires_grad=True)
    return model.eval(), processor


def trained_layer(vlm: Any) -> nn.Linear:
    """Returns the projector's layer that is trained."""
    return {"paligemma": paligemma, "fast_vlm": fast_vlm}[vlm.config.model_type].trained_layer(vlm)


def _complete(tokenizer: Any) -> None:
    """Gives the tokenizer all special tokens, and padding on the left."""
    if tokenizer.eos_token is None:
        raise ValueError(
            "the language model's tokenizer has no end-of-text token, so answers would not end; try another connect.llm"
        )
    if tokenizer.bos_token is None:  # Qwen2 has none, and the processor would write "None" into every prompt
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # generation continues at the right end of the prompt
    tokenizer.init_kwargs["padding_side"] = "left"  # save_pretrained writes only attributes that are named here
    tokenizer.chat_template = None  # the language model's own has no place for images


def _text_config(llm: Any, tokenizer: Any) -> Any:
    values = {key: value for key, value in llm.config.to_dict().items() if key != "quantization_config"}  # GGUF's
    text = type(llm.config).from_dict(values)
    text._name_or_path = ""
    # the processor adds tokens; some language models have spare rows for them
    text.vocab_size = max(llm.config.vocab_size, len(tokenizer))
    return text


def _options(llm: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "tie_word_embeddings": bool(llm.config.tie_word_embeddings),  # PaliGemma's default would drop an untied head
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@torch.no_grad()
def _fill_tower(target: Any, tower: Any) -> None:
    missing, unexpected = target.load_state_dict(tower.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("pooler.") for name in missing)
    for name in missing:  # unused; with random values two exports of one model would differ
        target.get_parameter(name).zero_()


@torch.no_grad()
def _fill_llm(model: Any, llm: Any) -> None:
    weights = llm.get_decoder().state_dict()
    rows = weights.pop("embed_tokens.weight")  # [V, D]
    decoder = model.model.language_model
    missing, unexpected = decoder.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing == ["embed_tokens.weight"]
    decoder.embed_tokens.weight[: len(rows)] = rows
    if not llm.config.tie_word_embeddings:
        model.lm_head.weight[: len(rows)] = llm.get_output_embeddings().weight


def _generation(tokenizer: Any, suppressed_tokens: tuple[str, ...]) -> Any:
    """Returns greedy generation without image tokens: after one, the next step would expect a second image."""
    make: Any = GenerationConfig
    return make(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=tokenizer.convert_tokens_to_ids(list(suppressed_tokens)),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
