"""Tokenizes questions and answers for training, with exactly the prompt that the stock processor builds for a user.

The sequence is the prompt, the answer, EOS and padding. PaliGemma's prompt is [image …, BOS, question, "\\n"] (section
3.1, https://arxiv.org/abs/2407.07726), FastVLM's [BOS, image …, question, "\\n"].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from components.connector.packing import IGNORE, first_of_each, pack
from components.connector.towers import image_size
from components.data.photos import Photos

Squares = Callable[[np.ndarray], Tensor]  # row numbers -> uint8 [B, 3, S, S]
BUCKET = 8  # tokens for each example of a group; lengths within one bucket count as equal
BLACK = Image.new("RGB", (8, 8))
WINDOW = 16  # batches; examples are sorted by length within a window


class Collator:
    """Makes tensors of questions and answers, padded on the right: one row a question, or one row a photo (`pack`)."""

    def __init__(self, processor: Any, answer_tokens: int) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.answer_tokens = answer_tokens
        self.prefix = cache(self._prefix)
        self.has_prefix_mask = "token_type_ids" in processor.model_input_names
        self.packs = not self.has_prefix_mask

    def _prefix(self, question: str) -> list[int]:
        """Returns the tokens of the prompt, as the stock processor builds it about an image, here a black one."""
        prompt = self.processor.apply_chat_template(chat(question, BLACK), tokenize=True, return_dict=True)
        ids: list[int] = prompt["input_ids"][0]
        return ids

    def suffix(self, answer: str) -> list[int]:
        """Returns the tokens of the answer and EOS, tokenized alone so that none merges with the "\\n" before it."""
        ids: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id][: self.answer_tokens]

    def lengths(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Returns the number of tokens of each example, int64 [N]."""
        prefix = {text: len(self.prefix(text)) for text in set(questions)}
        return np.array([prefix[text] for text in questions], dtype=np.int64) + self.answer_lengths(answers)

    def answer_lengths(self, answers: Sequence[str]) -> np.ndarray:
        """Returns the number of tokens of each answer, int64 [N]."""
        suffix = {text: len(self.suffix(text)) for text in set(answers)}
        return np.array([suffix[text] for text in answers], dtype=np.int64)

    def pictures(self, photos: np.ndarray) -> np.ndarray:
        """Returns the photo of each row of a batch. photos: int64 [N], the photo of each question."""
        return photos[first_of_each(photos)] if self.packs else photos

    def __call__(
        self, questions: Iterable[str], answers: Iterable[str], photos: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """Returns input_ids, attention_mask and labels, int64 [B, L]; labels are IGNORE but for the answer and EOS.

        For a model whose prompt attends to all of itself also token_type_ids: 0 = prefix, 1 = suffix and padding.
        photos: the photo of each question, those of one photo together; then a model with a causal prompt gets what
        `pack` returns, and the rows are the `pictures`.
        """
        pairs = [(self.prefix(q), self.suffix(a)) for q, a in zip(questions, answers, strict=True)]
        if photos is not None and self.packs:
            prefix_length = len(pairs[0][0]) - pairs[0][0][::-1].index(self.processor.image_token_id)
            return pack(pairs, photos, prefix_length, self.tokenizer.pad_token_id)
        shape = len(pairs), max(len(prefix) + len(suffix) for prefix, suffix in pairs)
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        mask, token_types, labels = torch.zeros_like(ids), torch.ones_like(ids), torch.full(shape, IGNORE)
        for row, (prefix, suffix) in enumerate(pairs):
            start, end = len(prefix), len(prefix) + len(suffix)
            ids[row, :end] = torch.tensor(prefix + suffix)
            mask[row, :end] = 1
            token_types[row, :start] = 0  # the mask follows from it; without it attention in the prefix is causal
            labels[row, start:end] = ids[row, start:end]  # by place, because EOS and PAD may be the same token
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {**batch, "token_type_ids": token_types} if self.has_prefix_mask else batch


def chat(question: str, image: Image.Image) -> list[dict[str, Any]]:
    """Returns a question about an image in transformers' chat format."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def epoch_batches(lengths: np.ndarray, groups: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the example numbers of one epoch, int64 [batches, batch_size], shuffled, similar lengths in one batch.

    Padding costs as much as any other token, and a caption is about as long as six answers. lengths, groups: int64
    [N]; examples of one group stand together, as those of a photo whose questions are packed. Groups of several are
    about equally long anyway, and sorting them would bring the same wordings together.
    """
    r = np.random.default_rng((seed, epoch))
    _, group = np.unique(groups, return_inverse=True)
    count = group.max() + 1
    length = np.bincount(group, lengths)[group] // (BUCKET * len(lengths) / count)
    order = r.permutation(count)[group]
    shuffled = np.argsort(order, kind="stable")[: len(lengths) // batch_size * batch_size]
    windows = np.array_split(shuffled, range(batch_size * WINDOW, len(shuffled), batch_size * WINDOW))
    sorted_windows = [window[np.argsort(length[window], kind="stable")] for window in windows]
    return r.permutation(np.concatenate(sorted_windows).reshape(-1, batch_size))


def squares_for(processor: Any, photos: Photos) -> Squares:
    """Returns a function from row numbers to the photos' pixels, as the model's image processor makes them."""
    images = processor.image_processor
    return partial(photos.squares, size=image_size(images), square="crop" if images.do_center_crop else "squash")
