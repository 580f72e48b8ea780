"""The language model sees a sequence of tokens: transformers' PaliGemma, with one linear layer between the two.

Beyer et al., PaliGemma: A versatile 3B VLM for transfer, 2024, https://arxiv.org/abs/2407.07726. With tower and LLM
frozen, a linear projector is no worse than an MLP (section 5.4). All tokens of the prompt attend to each other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS, IMAGE_TOKEN

TOKENS = (IMAGE_TOKEN, *EXTRA_TOKENS)  # which the processor adds to any tokenizer
# the processor adds BOS and "\n"; the template is for the pipeline's chat format
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def make_processor(images: Any, tokenizer: Any, features: Tensor) -> Any:
    """Returns the processor whose prompt is [image …, BOS, question, "\\n"]. features: [1, N, D], of one image."""
    images.image_seq_length = features.shape[1]
    make: Any = PaliGemmaProcessor
    return make(images, tokenizer, chat_template=CHAT)


def make_model(vision: Any, text: Any, processor: Any, options: dict[str, Any]) -> Any:
    """Returns the model with random weights. vision, text: configurations; options: of the whole."""
    text.use_bidirectional_attention = True  # must exist on every text config, or building fails
    make: Any = PaliGemmaConfig
    sizes = {"vocab_size": text.vocab_size, "hidden_size": text.hidden_size, "projection_dim": text.hidden_size}
    config = make(
        vision_config=vision, text_config=text, image_token_index=processor.image_token_id, **sizes, **options
    )
    return PaliGemmaForConditionalGeneration(config)  # new tokens: N(0, 0.02), as in section 5.3


def trained_layer(model: Any) -> nn.Linear:
    return model.model.multi_modal_projector.linear
