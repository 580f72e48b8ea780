"""What is written about each photo: its captions, and the name of its class in a sentence."""

from __future__ import annotations

from collections.abc import Iterator

from components.data.entries import DESCRIBE, plain_name
from components.data.photos import Photos

TEMPLATE = "This is a photo of {}."  # that of transformers' zero-shot-image-classification


def class_text(label: str) -> str:
    return TEMPLATE.format(plain_name(label))


def captions(photos: Photos, split: str) -> dict[int, list[str]]:
    """Returns the captions of the photos that have any, by row, in lower case with single spaces."""
    texts: dict[int, list[str]] = {}
    for row, question, answer in photos.questions(split).select("row", "question", "answer").iter_rows():
        if question == DESCRIBE:
            texts.setdefault(row, []).append(" ".join(answer.lower().split()))
    return texts


def training_texts(photos: Photos, *, class_names: bool) -> dict[int, list[str]]:
    """Returns the texts of the training photos that have any, by row; with `class_names` also of those with a label."""
    texts = captions(photos, "train")
    for row, text in _class_texts(photos) if class_names else ():
        texts.setdefault(row, []).append(text)
    return dict(sorted(texts.items()))


def captions_or_class_names(photos: Photos, *, class_names: bool) -> dict[int, list[str]]:
    """Returns the captions of the training photos, by row; with `class_names` the name of its class where one has none.

    Photos that have neither are left out.
    """
    texts = captions(photos, "train")
    for row, text in _class_texts(photos) if class_names else ():
        texts.setdefault(row, [text])
    return dict(sorted(texts.items()))


def _class_texts(photos: Photos) -> Iterator[tuple[int, str]]:
    """Yields the labeled training photos' rows, each with the name of its class in a sentence."""
    for row in photos.rows("train", labeled=True).tolist():
        label = photos.label(row)
        assert label is not None
        yield row, class_text(label)
