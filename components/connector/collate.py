"""What is trained on must be, token for token, what the stock processor will build when someone asks.

The sequence is [image …, BOS, question, "\\n", answer, EOS, padding …] (PaliGemma, section 3.1, https://arxiv.org/abs/2407.07726).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
BUCKET = 8  # tokens: lengths that differ by less count as the same
WINDOW = 16  # batches among which examples of like length are brought together


class Collator:
    """Questions and answers -> tensors. One example a row, padded on the right: packing would leak between examples."""

    def __init__(self, processor: Any, answer_tokens: int) -> None:
        self.tokenizer = processor.tokenizer
        self.opening = processor.image_token * processor.image_seq_length + self.tokenizer.bos_token
        self.answer_tokens = answer_tokens

    def prefix(self, question: str) -> list[int]:
        """Tokens of image, BOS, question and "\\n", as PaliGemmaProcessor makes them: one string, tokenized whole."""
        ids: list[int] = self.tokenizer(f"{self.opening}{question}\n")["input_ids"]
        return ids

    def suffix(self, answer: str) -> list[int]:
        """Tokens of the answer and EOS; tokenized apart from the question, so that nothing merges with its "\\n"."""
        ids: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id][: self.answer_tokens]

    def lengths(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Tokens of each example, int64 [N]."""
        prefix = {text: len(self.prefix(text)) for text in set(questions)}
        suffix = {text: len(self.suffix(text)) for text in set(answers)}
        return np.array([prefix[q] + suffix[a] for q, a in zip(questions, answers, strict=True)], dtype=np.int64)

    def __call__(self, questions: Iterable[str], answers: Iterable[str]) -> dict[str, Tensor]:
        """int64 [B, L] each: input_ids, attention_mask, token_type_ids (0 = prefix, 1 = suffix and padding), labels.

        labels are IGNORE but for the answer and EOS.
        """
        pairs = [(self.prefix(q), self.suffix(a)) for q, a in zip(questions, answers, strict=True)]
        shape = len(pairs), max(len(prefix) + len(suffix) for prefix, suffix in pairs)
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        mask, kinds, labels = torch.zeros_like(ids), torch.ones_like(ids), torch.full(shape, IGNORE)
        for row, (prefix, suffix) in enumerate(pairs):
            start, end = len(prefix), len(prefix) + len(suffix)
            ids[row, :end] = torch.tensor(prefix + suffix)
            mask[row, :end] = 1
            kinds[row, :start] = 0  # what the mask reads: without it the question would be read from left to right
            labels[row, start:end] = ids[row, start:end]  # EOS may be PAD, so labels are made by place and not by token
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds, "labels": labels}


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Example numbers of one epoch, int64 [batches, batch_size]: shuffled, yet with like lengths together.

    Padding is computed like any other token, and here a caption is as long as six answers.
    """
    r = np.random.default_rng((seed, epoch))
    shuffled = r.permutation(len(lengths))[: len(lengths) // batch_size * batch_size]
    windows = np.array_split(shuffled, range(batch_size * WINDOW, len(shuffled), batch_size * WINDOW))
    gathered = [window[np.argsort(lengths[window] // BUCKET, kind="stable")] for window in windows]
    return r.permutation(np.concatenate(gathered).reshape(-1, batch_size))
