"""Texts of photos as tokens: lower-cased byte pairs, learned from the texts of the training photos alone.

Sennrich et al., ACL 2016, https://arxiv.org/abs/1508.07909; of bytes: Radford et al., 2019 (GPT-2). Any text of any
language has tokens, and a word that is frequent is one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from components.data.fields import BatchSource, Field
from components.data.photos import Photos
from components.data.texts import captions_or_class_names

SPECIAL = ("<start>", "<end>")
START, END = 0, 1  # their ids; <end> also fills the rest of a row
FEWEST = 256 + len(SPECIAL)  # tokens: the bytes


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Returns a tokenizer with at most `vocabulary` tokens (FEWEST or more); pairs that are there once are not merged.

    Its tokens depend on the texts alone. It puts <start> before a text and <end> behind it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # the first word is as those inside
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start, end = SPECIAL
    tokens = [(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=tokens)
    return tokenizer


class TokenizedTexts(NamedTuple):
    """The texts of the training photos."""

    vocabulary: int  # tokens that there are
    longest: int  # tokens of the longest text, before it is cut
    tokens: np.ndarray  # int32 [texts, length], each different text once; cut before <end>, or filled with <end>
    order: np.ndarray  # int64, rows of `tokens`: the texts of the first photo, those of the second …
    first: np.ndarray  # int64 [photos], where in `order` the texts of each photo begin
    counts: np.ndarray  # int64 [photos], how many it has; 0 for photos of other splits


@lru_cache(maxsize=1)
def tokenized_texts(folder: Path, length: int, vocabulary: int, *, class_names: bool) -> TokenizedTexts:
    """Returns the tokens of the training photos' texts, in a folder written by `prepare`."""
    photos = Photos(folder)
    texts = captions_or_class_names(photos, class_names=class_names)
    lines = [line for photo_texts in texts.values() for line in photo_texts]
    tokenizer = train_tokenizer(lines, vocabulary)
    index_of = {line: index for index, line in enumerate(dict.fromkeys(lines))}
    longest = max((len(encoding.ids) for encoding in tokenizer.encode_batch(list(index_of))), default=len(SPECIAL))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=END, pad_token=SPECIAL[END])
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(list(index_of))]
    counts = np.zeros(len(photos), np.int64)
    counts[list(texts)] = [len(photo_texts) for photo_texts in texts.values()]
    return TokenizedTexts(
        vocabulary=tokenizer.get_vocab_size(),
        longest=longest,
        tokens=np.array(tokens, dtype=np.int32).reshape(-1, length),
        order=np.array([index_of[line] for line in lines], dtype=np.int64),
        first=counts.cumsum() - counts,
        counts=counts,
    )


@dataclass(frozen=True)
class Tokens(Field):
    """The tokens of one text of each photo, drawn from its captions in every epoch anew: int64 [B, length].

    vocabulary: the most tokens that there may be. class_names: the name of its class stands for a missing caption.
    """

    length: int
    vocabulary: int
    class_names: bool
    dtype = torch.int64
    shows_labels = True  # a caption may name what the label does
    files = ("questions.parquet",)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    def usable(self, photos: Photos, rows: np.ndarray) -> np.ndarray:
        return rows[np.isin(rows, list(captions_or_class_names(photos, class_names=self.class_names)))]

    def make(self, source: BatchSource, position: int) -> Tensor:
        texts = tokenized_texts(source.photos.folder, self.length, self.vocabulary, class_names=self.class_names)
        counts = texts.counts[source.rows]
        assert counts.all(), "a photo without a text"
        choice = (source.uniform(position, 1)[:, 0].numpy() * counts).astype(np.int64)
        return torch.from_numpy(texts.tokens[texts.order[texts.first[source.rows] + choice]].astype(np.int64))
