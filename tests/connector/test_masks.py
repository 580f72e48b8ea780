"""Who sees whom: a token is changed, and exactly those places change that may attend to it, alone or through others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from components.connector.collate import Collator
from components.connector.towers import image_size
from tests.connector import tiny
from tests.tolerances import LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
QUESTION, ANSWER = tiny.COLOR, "a bright picture"
PADDING = 3
OTHER = 5  # a token that is in none of the sequences


@pytest.fixture(
    scope="module", params=[(eyes, kind) for eyes in (tiny.backbone, tiny.cnn) for kind in ("llama", "gemma")]
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    eyes, kind = request.param
    return tiny.vlm(tmp_path_factory.mktemp(kind), kind, eyes=eyes)


def sequence(processor: Any, padding: int = 0) -> dict[str, Tensor]:
    """Returns one question with its answer, with `padding` on the left, and an image of noise."""
    batch = Collator(processor, 64)([QUESTION], [ANSWER])
    del batch["labels"]
    assert not (batch["input_ids"] == OTHER).any()
    batch = {name: pad(value, (padding, 0)) for name, value in batch.items()}
    side = image_size(processor.image_processor)
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {**batch, "position_ids": batch["attention_mask"].cumsum(1), "pixel_values": noise}


@torch.no_grad()
def states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model.model(**batch, use_cache=False).last_hidden_state[0]  # [L, D]


def moved(model: Any, batch: dict[str, Tensor], **changes: Tensor) -> Tensor:
    """Returns which places have another state after `changes`, bool [L]."""
    difference = (states(model, {**batch, **changes}) - states(model, batch)).abs().amax(1)
    assert ((difference < LAYERS_FLOAT32) | (difference > 10 * LAYERS_FLOAT32)).all()  # nothing in between
    return difference > LAYERS_FLOAT32


def changed(ids: Tensor, place: int) -> Tensor:
    ids = ids.clone()
    ids[0, place] = OTHER
    return ids


@pytest.mark.parametrize("padding", [0, PADDING])
def test_a_token_moves_all_that_may_see_it_and_no_other(pair: Any, padding: int) -> None:
    model, processor = pair
    batch = sequence(processor, padding)
    ids = batch["input_ids"]
    prefix = padding + len(Collator(processor, 64).prefix(QUESTION))
    places = torch.arange(ids.shape[1])
    attends_to_all = "token_type_ids" in batch  # PaliGemma's prompt to all of itself, FastVLM's to what is before
    tokens = (ids[0] != processor.image_token_id).nonzero()[:, 0].tolist()
    for place in tokens:
        if place < padding:
            expected = places == place  # padding moves itself at most
        elif place < prefix and attends_to_all:
            expected = places >= padding
        else:
            expected = places >= place
        found = moved(model, batch, input_ids=changed(ids, place))
        assert (found | (places < padding)).equal(expected | (places < padding)), place  # states of padding are unused


def test_the_image_moves_all_that_may_see_it(pair: Any) -> None:
    model, processor = pair
    batch = sequence(processor)
    found = moved(model, batch, pixel_values=-batch["pixel_values"])
    first = 0 if "token_type_ids" in batch else int((batch["input_ids"][0] == processor.image_token_id).nonzero()[0])
    assert found.equal(torch.arange(len(found)) >= first)


def test_padding_on_the_left_changes_nothing(pair: Any) -> None:
    model, processor = pair
    plain, padded = states(model, sequence(processor)), states(model, sequence(processor, PADDING))[PADDING:]
    torch.testing.assert_close(padded, plain, atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)
