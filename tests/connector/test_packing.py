"""Questions packed behind their photo have the loss and the gradient that each has in a row of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.connector.collate import Collator, epoch_batches
from components.connector.objective import Connector
from components.connector.packing import IGNORE, SHARED
from components.connector.trained import unfreeze
from components.training.lora import LoRA
from tests.connector import tiny
from tests.connector.test_fast_vlm import pixels
from tests.tolerances import LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PHOTOS = np.array([7, 7, 7, 2, 4, 4])
QUESTIONS = [tiny.COLOR, tiny.SIDE, "?", tiny.SIDE, "What is it, a very long question?", tiny.COLOR]
ANSWERS = ["red", "no", "a bright picture, all of it", "yes", "blue", "a bright picture"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.vlm(tmp_path_factory.mktemp("vlm"), eyes=tiny.cnn)[1]


@pytest.mark.parametrize(
    ("kind", "attention"),
    [("llama", "sdpa"), ("qwen3", "sdpa"), ("phi3", "sdpa"), ("llama", "eager"), ("gemma2", "eager")],
)
def test_loss_and_gradient_are_those_of_one_row_a_question(kind: str, attention: str, tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path, kind, eyes=tiny.cnn)
    model.set_attn_implementation(attention)
    unfreeze(model, "lora", LoRA(rank=4), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero at first, so that A would have no gradient
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    objective, collator = Connector(model, processor), Collator(processor, 64)
    photos = pixels(8)
    packed = {**collator(QUESTIONS, ANSWERS, PHOTOS), "pixels": photos[collator.pictures(PHOTOS)]}
    assert packed["input_ids"].shape[0] == 3
    apart = {**collator(QUESTIONS, ANSWERS), "pixels": photos[PHOTOS]}
    results = []
    for batch in (packed, apart):
        losses = objective.losses(batch)
        objective.zero_grad()
        losses.mean().backward()
        results.append((losses.detach(), {name: weight.grad for name, weight in objective.named_parameters()}))
    (losses, gradients), (expected, expected_gradients) = results
    assert expected.std() > 0.1
    torch.testing.assert_close(losses, expected, atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)
    for name, gradient in expected_gradients.items():
        assert gradient.abs().max() > 1e-4, name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, atol=LAYERS_FLOAT32 * scale, rtol=LAYERS_FLOAT32)


def test_a_packed_row_token_by_token(processor: Any) -> None:
    collator, tokens = Collator(processor, 64), processor.tokenizer
    batch = collator([tiny.SIDE, tiny.COLOR], ["no", "red"], np.array([3, 3]))
    image = [1, *[processor.image_token_id] * 4]
    first, second = (
        [*tokens(text)["input_ids"], tokens.convert_tokens_to_ids("Ċ")] for text in (tiny.SIDE, tiny.COLOR)
    )
    no, red = ([*tokens(text)["input_ids"], 2] for text in ("no", "red"))
    assert batch["input_ids"].tolist() == [image + first + no + second + red]
    assert batch["labels"].tolist() == [[IGNORE] * len(image + first) + no + [IGNORE] * len(second) + red]
    lengths = len(first + no), len(second + red)
    assert batch["owner"].tolist() == [[SHARED] * 5 + [0] * lengths[0] + [1] * lengths[1]]
    assert batch["position_ids"].tolist() == [[*range(5), *range(5, 5 + lengths[0]), *range(5, 5 + lengths[1])]]


def test_only_a_causal_prompt_is_packed(tmp_path: Path) -> None:
    """PaliGemma's photo sees the question, so each question needs a photo of its own."""
    collator = Collator(tiny.vlm(tmp_path)[1], 64)
    asked: dict[str, Tensor] = collator(QUESTIONS, ANSWERS, PHOTOS)
    assert all(torch.equal(value, asked[name]) for name, value in collator(QUESTIONS, ANSWERS).items())
    assert collator.pictures(PHOTOS) is PHOTOS


def test_an_epoch_keeps_the_questions_of_a_photo_together() -> None:
    r = np.random.default_rng(0)
    photos = r.permutation(np.repeat(np.arange(300), r.integers(1, 6, 300)))
    lengths = r.integers(10, 40, len(photos))
    batches = epoch_batches(lengths, photos, 8, seed=0, epoch=0)
    assert batches.shape == (len(photos) // 8, 8)
    assert len(np.unique(batches)) == batches.size
    rows = sum(1 + np.count_nonzero(np.diff(photos[batch])) for batch in batches)
    different = sum(len(np.unique(photos[batch])) for batch in batches)
    assert rows == different  # a batch has each of its photos in one piece
    assert rows < 300 + len(batches)  # and the end of a batch cuts one photo at most
    assert (batches != epoch_batches(lengths, photos, 8, seed=0, epoch=1)).any()
