"""The language model sees a CNN's map: transformers' FastVLM, whose projector is made linear, as PaliGemma's is.

Vasu et al., FastVLM: Efficient Vision Encoding for Vision Language Models, 2024, https://arxiv.org/abs/2412.13303. Each
place of the map is a token. Unlike PaliGemma's, the prompt is causal: a token attends only to those before it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlavaProcessor

from components.connector.towers import image_size

IMAGE_TOKEN = "<image>"
TOKENS = (IMAGE_TOKEN,)
# the processor adds nothing to the text, so that BOS and "\n" are in the template
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '\n' }}{% endfor %}"
)


def make_processor(images: Any, tokenizer: Any, features: Tensor) -> Any:
    """Returns the processor whose chat is [BOS, image …, question, "\\n"]. features: [1, D, h, w], of one image."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    # without token_type_ids, which this model refuses; in init_kwargs too, or it is not saved
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
    height, width = features.shape[2:]
    size = image_size(images)
    patch = size // height
    make: Any = LlavaProcessor  # counts (size // patch_size)² tokens for an image, and the additional ones
    return make(
        images,
        tokenizer,
        patch_size=patch,
        num_additional_image_tokens=height * width - (size // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT,
    )


def make_model(vision: Any, text: Any, processor: Any, options: dict[str, Any]) -> Any:
    """Returns the model with random weights. vision, text: configurations; options: of the whole.

    The projector's second layer is the identity, and so is its activation, so that both classes train one linear layer
    from the same start.
    """
    make: Any = FastVlmConfig
    linear: dict[str, Any] = {"projector_hidden_act": "linear", "image_token_index": processor.image_token_id}
    model: Any = FastVlmForConditionalGeneration(make(vision_config=vision, text_config=text, **linear, **options))
    second = model.model.multi_modal_projector.linear_2
    nn.init.eye_(second.weight)
    nn.init.zeros_(second.bias)
    return model


def trained_layer(model: Any) -> nn.Linear:
    return model.model.multi_modal_projector.linear_1
