"""Assembles a stock PaliGemma from a ViT backbone, a Llama-like language model and a new linear projector.

Beyer et al., PaliGemma: A versatile 3B VLM for transfer, 2024, https://arxiv.org/abs/2407.07726. With tower and LLM
frozen, a linear projector is no worse than an MLP (section 5.4).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
)
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS, IMAGE_TOKEN
from transformers.models.vit import ViTImageProcessor

from components.models.families import FAMILIES

# the processor adds BOS and "\n"; the template is for the pipeline's chat format
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
# what AutoModel makes of a saved backbone's config.json, tested as PaliGemma's tower
TOWERS = tuple(kind for kind in FAMILIES if kind not in ("vit_mae", "siglip", "clip"))  # saved as their vision towers
MAX_NEW_TOKENS = 64  # transformers' default includes the prompt, which the image alone would fill


def tower_problem(backbone: Path) -> str | None:
    """Returns why the backbone in this folder cannot be a vision tower, or None if it can.

    Raises ValueError if the folder holds no backbone.
    """
    config = backbone / "config.json"
    if not config.is_file():
        raise ValueError(f"{backbone} holds no backbone: config.json is missing; run the pretrain stage first")
    kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    if kind in TOWERS:
        return None
    return (
        f"the language model takes backbones that are a sequence of tokens ({', '.join(TOWERS)}), and this one is a "
        f"{kind}; for answers set in params.yaml backbone: {{kind: vit, …}} in pretrain.common, or connect.method to a "
        "method whose own section has it"
    )


def assemble(backbone: Path, llm: Any, tokenizer: Any, seed: int = 0) -> tuple[Any, Any]:
    """Returns a PaliGemmaForConditionalGeneration, frozen except for a new projector, and its PaliGemmaProcessor.

    backbone: a folder that Backbone.save wrote. llm, tokenizer: from load_llm; the tokenizer is changed in place.
    Weights are copied into a new model, because a model that was read from GGUF cannot be saved.
    Raises ValueError if the backbone is of no family in TOWERS, or if the tokenizer has no end-of-text token.
    """
    if problem := tower_problem(backbone):
        raise ValueError(problem)
    tower = _read_tower(backbone)
    processor = _processor(backbone, tower, tokenizer)
    torch.manual_seed(seed)
    config = _config(tower.config, llm.config, processor)
    model: Any = PaliGemmaForConditionalGeneration(config)  # new tokens: N(0, 0.02), as in section 5.3
    _fill_tower(model.model.vision_tower, tower)
    _fill_llm(model, llm)
    nn.init.normal_(model.model.multi_modal_projector.linear.weight, std=0.02)  # whatever the LLM's initializer_range
    nn.init.zeros_(model.model.multi_modal_projector.linear.bias)
    model.generation_config = _generation(processor)
    model.requires_grad_(requires_grad=False)
    model.model.multi_modal_projector.requires_grad_(requires_grad=True)
    return model.eval(), processor


def _read_tower(backbone: Path) -> Any:
    """Returns the backbone as transformers' class of its family, without a pooling head, which no token needs."""
    family = FAMILIES[json.loads((backbone / "config.json").read_text(encoding="utf-8"))["model_type"]]
    tower = family.transformer.from_pretrained(backbone, **family.load_options)
    if hasattr(tower, "head"):
        tower.config.vision_use_head = tower.use_head = False
        del tower.head
    return tower.eval()


@torch.no_grad()
def _token_count(tower: Any) -> int:
    """Returns how many tokens the tower makes of an image: patches, and those before them."""
    size = tower.config.image_size
    return int(tower(torch.zeros(1, 3, size, size)).last_hidden_state.shape[1])


def _processor(backbone: Path, tower: Any, tokenizer: Any) -> Any:
    """Returns a processor with the backbone's size and statistics and a tokenizer with all special tokens."""
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
    image_processor: Any = ViTImageProcessor.from_pretrained(backbone)
    image_processor.image_seq_length = _token_count(tower)
    make: Any = PaliGemmaProcessor
    return make(image_processor, tokenizer, chat_template=CHAT)


def _config(vit: Any, llm: Any, processor: Any) -> Any:
    values = {key: value for key, value in llm.to_dict().items() if key != "quantization_config"}  # GGUF's
    text = type(llm).from_dict(values)
    vit._name_or_path = text._name_or_path = ""  # no paths of this machine in the saved config
    text.use_bidirectional_attention = True  # must exist on every text config, or building fails
    # PaliGemma adds 1152 tokens; some language models have spare rows for them
    text.vocab_size = max(llm.vocab_size, len(processor.tokenizer))
    make: Any = PaliGemmaConfig
    return make(
        vision_config=vit,
        text_config=text,
        image_token_index=processor.image_token_id,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        projection_dim=text.hidden_size,
        tie_word_embeddings=bool(llm.tie_word_embeddings),  # the default, True, would drop an untied head
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )


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


def _generation(processor: Any) -> Any:
    """Returns greedy generation without image tokens: after one, the next step would expect a second image."""
    tokenizer = processor.tokenizer
    make: Any = GenerationConfig
    return make(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, *EXTRA_TOKENS]),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
