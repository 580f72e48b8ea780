"""CNNs as the eyes of the language model: what differs from a PaliGemma, and which backbones cannot see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from components.connector.collate import Collator, chat
from components.connector.llm import TYPES
from components.connector.objective import Connector
from components.connector.towers import tower_problem
from components.connector.vlm import assemble
from components.models.backbone import ResNetBackbone, build
from tests.connector import tiny
from tests.connector.towers import timm
from tests.tolerances import LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LOGITS = 10 * LAYERS_FLOAT32  # they are up to 10
QUESTIONS, ANSWERS = [tiny.COLOR, tiny.SIDE], ["red", "a bright picture, all of it"]
PHOTOS = [Image.new("RGB", (70, 90), color) for color in ("red", "blue")]


@pytest.fixture(scope="module", params=TYPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.vlm(tmp_path_factory.mktemp(request.param), request.param, eyes=tiny.cnn)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.vlm(tmp_path_factory.mktemp("llama"), eyes=tiny.cnn)


def prompts(processor: Any) -> Any:
    chats = [chat(question, photo) for question, photo in zip(QUESTIONS, PHOTOS, strict=True)]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(chats, **options, processor_kwargs={"padding": True})


def pixels(count: int, size: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_generation_has_the_logits_of_training(pair: Any) -> None:
    """Left padding and a cache on one side; right padding and no cache on the other."""
    model, processor = pair
    inputs = prompts(processor)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert not inputs["attention_mask"].all()
    steps = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    new = steps.sequences[:, inputs["input_ids"].shape[1] :]
    for row, question in enumerate(QUESTIONS):
        prefix = Collator(processor, 64).prefix(question)
        ids = torch.cat([torch.tensor([prefix]), new[row : row + 1]], 1)
        forced = model(input_ids=ids, pixel_values=inputs["pixel_values"][[row]], use_cache=False).logits[0]
        for step in range(new.shape[1]):
            expected = forced[len(prefix) - 1 + step]
            torch.testing.assert_close(steps.logits[step][row], expected, atol=LOGITS, rtol=LAYERS_FLOAT32)
            if new[row, step] == processor.tokenizer.eos_token_id:
                break  # what follows is padding


@torch.no_grad()
def test_losses_do_not_depend_on_the_batch(pair: Any) -> None:
    model, processor = pair
    objective, collator, photos = Connector(model, processor), Collator(processor, 64), pixels(2)
    together = objective.losses({**collator(QUESTIONS, ANSWERS), "pixels": photos})
    alone = [
        objective.losses({**collator([question], [answer]), "pixels": photos[[row]]})
        for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=LOGITS, rtol=LAYERS_FLOAT32)


@torch.no_grad()
def test_the_prompt_is_causal(pair: Any) -> None:
    """Every token's state is the same whatever comes after it, exactly."""
    model, processor = pair
    batch = Collator(processor, 64)(QUESTIONS[:1], ANSWERS[:1])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before = model.model(**inputs, pixel_values=torch.ones(1, 3, 64, 64)).last_hidden_state
    for place in (6, inputs["input_ids"].shape[1] - 1):
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][0, place] = 5
        after = model.model(**changed, pixel_values=torch.ones(1, 3, 64, 64)).last_hidden_state
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


def test_the_prompt_is_bos_image_question_newline(llama: Any) -> None:
    _, processor = llama
    tokens = processor.tokenizer
    image, newline = tokens.convert_tokens_to_ids(["<image>", "Ċ"])
    assert Collator(processor, 64).prefix(tiny.COLOR) == [1, *[image] * 4, *tokens(tiny.COLOR)["input_ids"], newline]


def test_the_image_token_has_a_row_and_is_never_an_answer(llama: Any) -> None:
    model, processor = llama
    assert processor.image_token_id == len(tiny.tokenizer()) == model.config.image_token_id
    assert len(model.get_input_embeddings().weight) == len(tiny.tokenizer()) + 1
    assert model.generation_config.suppress_tokens == [processor.image_token_id]


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 64, 70, 97, 200])
def test_there_are_as_many_tokens_as_places(tmp_path: Path, size: int) -> None:
    timm("test_efficientnet", size)(tmp_path)
    model, processor = assemble(tmp_path / "backbone", tiny.llm(), tiny.tokenizer())
    inputs = prompts(processor)
    tower = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    assert inputs["pixel_values"].shape[-1] == size
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [tower[0, 0].numel()] * 2
    assert model(**inputs).logits.isfinite().all()


def test_only_one_layer_changes(tmp_path: Path) -> None:
    """Tower, with its batch statistics, and language model stay the same to the bit, in train mode too."""
    model, processor = tiny.vlm(tmp_path, tied=False, eyes=tiny.cnn)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = Connector(model, processor).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.03)
    batch = {**Collator(processor, 8)([tiny.SIDE] * 16, list("abcdefghijklmnop")), "pixels": pixels(16)}
    losses = []
    for _ in range(30):
        loss = objective(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"model.multi_modal_projector.linear_1.{kind}" for kind in ("weight", "bias")}
    assert torch.equal(model.model.multi_modal_projector.linear_2.weight, torch.eye(64))


def test_what_cannot_see_is_told_why(tmp_path: Path) -> None:
    build(ResNetBackbone(kind="resnet18", image_size=64)).save(tmp_path / "small")
    reason = tower_problem(tmp_path / "small")
    assert reason is not None
    assert (
        "first layer of a resnet18 for images of at most 64 pixels; for answers train it with an image_size" in reason
    )
    with pytest.raises(ValueError, match="no class of transformers has the first layer"):
        assemble(tmp_path / "small", tiny.llm(), tiny.tokenizer())
    timm("test_vit", 160)(tmp_path)
    reason = tower_problem(tmp_path / "backbone")
    assert reason is not None
    assert "timm's test_vit gives no map" in reason
    with pytest.raises(ValueError, match="run the pretrain stage first"):
        tower_problem(tmp_path / "nowhere")
    for eyes in (tiny.backbone, tiny.cnn):
        assert tower_problem(eyes(tmp_path / eyes.__name__) / "backbone") is None
