"""A connector needs no model class of its own: a stock PaliGemma holds any ViT, any Llama-like model, a line between.

Beyer et al., PaliGemma: A versatile 3B VLM for transfer, 2024, https://arxiv.org/abs/2407.07726. With tower and LLM
frozen a linear projector is not worse than an MLP there (section 5.4).
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
    ViTModel,
)
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS, IMAGE_TOKEN
from transformers.models.vit import ViTImageProcessor

# the processor adds BOS and "\n" itself; the template only lets the pipeline's chat format through
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
MAX_NEW_TOKENS = 64  # transformers' own default counts the prompt in, and the image alone would fill it


def tower_problem(backbone: Path) -> str | None:
    """Returns why the backbone in this folder cannot be a vision tower, or None if it can.

    Raises ValueError if the folder holds no backbone.
    """
    config = backbone / "config.json"
    if not config.is_file():
        raise ValueError(f"{backbone} holds no backbone: config.json is missing; run the pretrain stage first")
    kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    if kind == "vit":
        return None
    return (
        f"the language model takes ViT backbones only, and this one is a {kind}; for answers set in params.yaml "
        "backbone: {kind: vit, …} in pretrain.common, or connect.method to a method whose own section has it"
    )


def assemble(backbone: Path, llm: Any, tokenizer: Any, seed: int = 0) -> tuple[Any, Any]:
    """A PaliGemmaForConditionalGeneration and its PaliGemmaProcessor: frozen but for a new projector.

    backbone: a folder that Backbone.save wrote. llm, tokenizer: from load_llm; the tokenizer is changed in place.
    Weights are copied into a clean model, for one that was read from GGUF cannot be saved.
    Raises ValueError if the backbone is no ViT.
    """
    if problem := tower_problem(backbone):
        raise ValueError(problem)
    tower = ViTModel.from_pretrained(backbone, add_pooling_layer=False)
    processor = _processor(backbone, tower.config, tokenizer)
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


def _processor(backbone: Path, vit: Any, tokenizer: Any) -> Any:
    """The backbone's own pixels, and a tokenizer that has all the marks PaliGemmaProcessor needs."""
    if tokenizer.eos_token is None:
        raise ValueError("the language model's tokenizer has no end-of-text token, so that an answer could never end")
    if tokenizer.bos_token is None:  # Qwen2 has none, and the processor would write "None" into every prompt
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # generation continues at the right end of the prompt
    tokenizer.init_kwargs["padding_side"] = "left"  # save_pretrained writes only attributes that are named here
    tokenizer.chat_template = None  # the LLM's own knows of no image
    images: Any = ViTImageProcessor.from_pretrained(backbone)
    images.image_seq_length = (vit.image_size // vit.patch_size) ** 2 + 1  # patches and the class token
    make: Any = PaliGemmaProcessor
    return make(images, tokenizer, chat_template=CHAT)


def _config(vit: Any, llm: Any, processor: Any) -> Any:
    kept = {key: value for key, value in llm.to_dict().items() if key != "quantization_config"}  # GGUF's
    text = type(llm).from_dict(kept)
    vit._name_or_path = text._name_or_path = ""  # where they lay on this machine is nobody's business
    text.use_bidirectional_attention = True  # must exist on every text config, or building fails
    # 1152 tokens more than the LLM knows; some LLMs have rows to spare
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
def _fill_tower(place: Any, tower: Any) -> None:
    missing, unexpected = place.load_state_dict(tower.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("pooler.") for name in missing)
    for parameter in place.pooler.parameters():  # never used; left random, two exports of one model would differ
        parameter.zero_()


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
    """Greedy, and never a token that stands for pixels: after one the next step would look for a second picture."""
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
