"""Packs the questions about a photo into one row behind it, so that the language model reads the photo once.

    [BOS, image …, question, answer, EOS, question, answer, EOS, …]

Each question and its answer attend to the photo and to themselves, and have the positions that they would have alone
behind it, so that losses and gradients are those of one row a question (tests/connector/test_packing.py). That is so
only if the photo's tokens do not attend to the question: in a causal prompt, as FastVLM's, and not in PaliGemma's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORE = -100
SHARED = -1  # owner of the photo's tokens


def first_of_each(photos: np.ndarray) -> np.ndarray:
    """Returns where a new photo begins, int64. photos: the photo of each question; equal ones stand together."""
    return np.flatnonzero(np.diff(photos, prepend=-1))


def pack(
    examples: Sequence[tuple[list[int], list[int]]], photos: np.ndarray, prefix_length: int, padding: int
) -> dict[str, Tensor]:
    """Returns input_ids, labels, position_ids and owner, int64 [B, L], and attention_mask, bool [B, 1, L, L].

    examples: the tokens of each prompt and answer; photos: int64 [N], the photo of each example; prefix_length: how
    many tokens of a prompt are BOS and the photo's, which all prompts share; padding: the token at the end of shorter
    rows. B is the number of photos, owner the example that a token belongs to, SHARED for the photo's, N for padding.
    """
    rows = []
    for group in np.split(np.arange(len(photos)), first_of_each(photos)[1:]):
        ids, labels = list(examples[group[0]][0][:prefix_length]), [IGNORE] * prefix_length
        positions, owners = list(range(prefix_length)), [SHARED] * prefix_length
        for number in group.tolist():
            prompt, answer = examples[number][0][prefix_length:], examples[number][1]
            length = len(prompt) + len(answer)
            ids += prompt + answer
            labels += [IGNORE] * len(prompt) + answer
            positions += range(prefix_length, prefix_length + length)
            owners += [number] * length
        rows.append([torch.tensor(values) for values in (ids, labels, positions, owners)])
    fills = {"input_ids": padding, "labels": IGNORE, "position_ids": 0, "owner": len(photos)}
    batch = {
        name: pad_sequence(list(values), batch_first=True, padding_value=fill)
        for (name, fill), values in zip(fills.items(), zip(*rows, strict=True), strict=True)
    }
    owner = batch["owner"]
    causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    is_visible = (owner[:, None, :] == owner[:, :, None]) | (owner == SHARED)[:, None, :]  # [B, query, key]
    return {**batch, "attention_mask": (is_visible & causal)[:, None]}
