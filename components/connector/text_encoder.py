"""A small text encoder of stock classes: a BertModel over the word vectors of a language model, which stay as they are.

So a word that no caption has is near its synonyms from the start. Devlin et al., NAACL 2019,
https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

MOST_TOKENS = 64  # of a text; longer ones are cut
HEADS = 4
INPUTS = ["input_ids", "attention_mask"]
# BERT's 0.02 keeps all texts alike for many steps; above 0.04, a word that is in no training text spoils a query
INIT_STD = 0.04
WORD_STD = 0.4  # ten times that of the random position embeddings: with equal ones, synonyms were confused


def text_tokenizer(tokenizer: Any) -> Any:
    """Returns a language model's tokenizer for short texts: in lower case, with a first token that BERT can pool.

    A space comes before the first word, which therefore has the same token as inside of a text.
    Raises ValueError if it is not a tokenizer of the library tokenizers, or has no special token.
    """
    first = tokenizer.bos_token or tokenizer.eos_token
    if not getattr(tokenizer, "is_fast", False) or first is None:
        raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer with a special token; try another words.llm")
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    normalizer = [fast.normalizer] if fast.normalizer else []
    space: list[Any] = [normalizers.Lowercase(), normalizers.Strip(), normalizers.Prepend(" ")]
    fast.normalizer = normalizers.Sequence([*space, *normalizer])
    special_tokens = [(first, fast.token_to_id(first))]
    fast.post_processor = processors.TemplateProcessing(single=f"{first}:0 $A:0", special_tokens=special_tokens)
    names = {"bos_token": first, "pad_token": tokenizer.pad_token or first, "unk_token": tokenizer.unk_token}
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_max_length=MOST_TOKENS,
        model_input_names=INPUTS,
        padding_side="right",
        **{name: value for name, value in names.items() if value},
    )


def word_vectors(llm: Any, max_width: int) -> Tensor:
    """Returns the principal components of a language model's token embeddings: [V, D], D at most `max_width`."""
    vectors = llm.get_input_embeddings().weight.detach().float()
    vectors = vectors - vectors.mean(0)
    _, axes = torch.linalg.eigh(vectors.T @ vectors)  # by size, ascending
    width = min(max_width, len(axes)) // HEADS * HEADS
    vectors = vectors @ axes.flip(1)[:, :width]
    return vectors * (WORD_STD / vectors.std())


def build_encoder(tokenizer: Any, vectors: Tensor, depth: int) -> Any:
    """Returns a BertModel with random weights from torch's generator, and frozen word vectors [V, D].

    Its feature is the pooled first token, [T, D].
    """
    words, width = vectors.shape
    config = BertConfig(
        vocab_size=max(words, len(tokenizer)),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=HEADS,
        intermediate_size=4 * width,
        max_position_embeddings=MOST_TOKENS,
        type_vocab_size=1,
        initializer_range=INIT_STD,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,  # a run has few steps
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config)
    embedding = model.embeddings.word_embeddings.weight.requires_grad_(False)  # noqa: FBT003
    embedding.data[:words] = vectors
    return model


def tokenize(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Returns input_ids and attention_mask, int64 [T, L], padded on the right."""
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
    return {name: encoded[name] for name in INPUTS}
