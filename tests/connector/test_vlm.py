"""The assembled model: masks, tokens, saving. T1 to T9 are known mistakes in connectors, each with a public report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

from components.connector.answering import generate_answers, load_vlm
from components.connector.collate import Collator
from components.connector.llm import TYPES
from components.connector.objective import Connector
from components.connector.vlm import assemble
from components.models.backbone import load as load_backbone
from tests.connector import tiny
from tests.tolerances import LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PAIRS = ([tiny.COLOR, tiny.SIDE], ["red", "a bright picture, all of it"])
LOGITS = 10 * LAYERS_FLOAT32  # they are up to 10


def inputs(processor: Any, questions: list[str], replies: list[str]) -> dict[str, Tensor]:
    """Returns what a forward pass needs, with an image of noise in each row."""
    batch = Collator(processor, 64)(questions, replies)
    del batch["labels"]
    noise = torch.randn(len(questions), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {**batch, "pixel_values": noise}


@torch.no_grad()
def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch, use_cache=False).logits


@pytest.fixture(scope="module", params=TYPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return tiny.vlm(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return tiny.vlm(tmp_path_factory.mktemp("llama"))


def test_the_whole_prefix_sees_itself(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    batch = inputs(processor, *PAIRS)
    with torch.no_grad():
        before = model.model(**batch).last_hidden_state
        batch["input_ids"][:, 7] = 5  # a token of the question
        after = model.model(**batch).last_hidden_state
    assert (
        (before - after)[:, :5].abs().amax((1, 2)) > 1e-4
    ).all()  # the image tokens, which come first, attend to the question


def test_T1_tokens_do_not_attend_to_later_answer_tokens(pair: tuple[Any, Any]) -> None:
    """Exactly, as their weights are 0, and in a batch without any padding, where Gemma's mask could be skipped."""
    model, processor = pair
    batch = inputs(processor, [tiny.SIDE], ["a bright picture, all of it"])
    assert batch["attention_mask"].all()
    start = int((batch["token_type_ids"] == 0).sum())
    before = logits(model, batch)
    for place in range(start, batch["input_ids"].shape[1]):
        changed = {**batch, "input_ids": batch["input_ids"].clone()}
        changed["input_ids"][0, place] = 5
        after = logits(model, changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


def test_T1_without_token_type_ids_gemma_attends_to_later_tokens(tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path, "gemma")
    batch = inputs(processor, [tiny.SIDE], ["a bright picture"])
    del batch["token_type_ids"]
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, -1] = 5
    assert not torch.equal(logits(model, batch)[:, :-1], logits(model, changed)[:, :-1])


def test_T2_generation_has_the_logits_of_training(pair: tuple[Any, Any]) -> None:
    """Left padding, the processor's token types and a cache on one side; right padding and none of it on the other."""
    model, processor = pair
    images = [Image.new("RGB", (20, 30), color) for color in ("red", "blue")]
    prompts = processor(
        images=[[image] for image in images],
        text=["<image>" + question for question in PAIRS[0]],
        padding=True,
        return_tensors="pt",
    )
    assert not prompts["attention_mask"].all()
    del prompts["labels"]
    steps = model.generate(**prompts, max_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    new = steps.sequences[:, prompts["input_ids"].shape[1] :]
    for row, question in enumerate(PAIRS[0]):
        batch = inputs(processor, [question], [""])
        prefix = int((batch["token_type_ids"] == 0).sum())
        ids = torch.cat([batch["input_ids"][:, :prefix], new[row : row + 1]], 1)
        kinds = torch.tensor([[0] * prefix + [1] * new.shape[1]])
        forced = logits(
            model, {"input_ids": ids, "token_type_ids": kinds, "pixel_values": prompts["pixel_values"][[row]]}
        )
        for step in range(new.shape[1]):
            expected = forced[0, prefix - 1 + step]
            torch.testing.assert_close(steps.logits[step][row], expected, atol=LOGITS, rtol=LAYERS_FLOAT32)
            if new[row, step] == processor.tokenizer.eos_token_id:
                break  # what follows is padding


def test_T3_examples_do_not_depend_on_their_batch(pair: tuple[Any, Any]) -> None:
    """And padding on the right changes nothing."""
    model, processor = pair
    objective, collator = Connector(model, processor), Collator(processor, 64)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = objective.losses({**collator(*PAIRS), "pixels": pixels})
        alone = [
            objective.losses({**collator([question], [reply]), "pixels": pixels[[row]]})
            for row, (question, reply) in enumerate(zip(*PAIRS, strict=True))
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=LOGITS, rtol=LAYERS_FLOAT32)


def test_left_padding_changes_nothing(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    batch = inputs(processor, [tiny.COLOR], ["red"])
    plain = logits(model, {**batch, "position_ids": batch["attention_mask"].cumsum(1)})
    moved = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    moved = {name: torch.nn.functional.pad(value, (3, 0)) for name, value in moved.items()}
    moved["position_ids"] = moved["attention_mask"].cumsum(1)
    padded = logits(model, {**moved, "pixel_values": batch["pixel_values"]})[:, 3:]
    torch.testing.assert_close(plain, padded, atol=LOGITS, rtol=LAYERS_FLOAT32)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_T4_attention_that_ignores_the_mask_is_refused(tmp_path: Path, attention: str) -> None:
    model, processor = tiny.vlm(tmp_path)
    model.config.text_config._attn_implementation = attention
    with pytest.raises(ValueError, match="sdpa, eager"):
        Connector(model, processor)


def test_T5_answers_contain_no_image_tokens(tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path, tied=False)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    prompt = processor(images=[[Image.new("RGB", (16, 16))]], text=["<image>" + tiny.SIDE], return_tensors="pt")
    del prompt["labels"]
    with torch.no_grad():
        state = model.model(**prompt).last_hidden_state[0, -1]
        model.lm_head.weight[image] = 100 * state  # now always the most likely token
    options = {**prompt, "max_new_tokens": 1}
    assert model.generate(**options, suppress_tokens=None)[0, -1] == image
    assert model.generate(**options)[0, -1] != image
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    kept = load_vlm(tmp_path / "saved")[0].generation_config.suppress_tokens
    assert set(kept) == set(processor.tokenizer.convert_tokens_to_ids(["<image>", *EXTRA_TOKENS]))


def test_T6_the_labels_of_the_processor_are_not_used(llama: tuple[Any, Any]) -> None:
    model, processor = llama
    image = Image.new("RGB", (16, 16))
    stock = processor(images=[[image]], text=["<image>" + tiny.SIDE], return_tensors="pt")
    assert (stock["labels"] == -100).all()
    assert len(generate_answers(model, processor, [image], [tiny.SIDE], 4)) == 1
    batch = {**Collator(processor, 8)([tiny.SIDE], ["no"]), "pixels": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}
    assert Connector(model, processor)(batch)["loss"].isfinite()


@pytest.mark.parametrize("tied", [True, False])
def test_T7_every_token_has_its_rows(tmp_path: Path, tied: bool) -> None:
    model, processor = tiny.vlm(tmp_path, tied=tied)
    ids = processor.tokenizer.convert_tokens_to_ids(["<image>", "<loc1023>", "<seg127>"])
    old = len(tiny.tokenizer())
    assert max(ids) + 1 == len(processor.tokenizer) == old + 1153
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert len(embeddings) == len(head) == len(processor.tokenizer) == model.config.text_config.vocab_size
    assert torch.equal(embeddings[:old], tiny.llm(tied=tied).get_input_embeddings().weight)
    assert (embeddings.data_ptr() == head.data_ptr()) == tied
    assert model.config.image_token_id == ids[0]
    batch = inputs(processor, ["<loc0000>?"], ["<seg127>"])
    assert logits(model, batch).isfinite().all()


def test_T7_spare_rows_of_the_embedding_are_kept(tmp_path: Path) -> None:
    """As Qwen2, whose matrix is longer than its tokenizer."""
    llm = tiny.llm()
    llm.resize_token_embeddings(2000, mean_resizing=False)
    model, _ = assemble(tiny.backbone(tmp_path) / "backbone", llm, tiny.tokenizer())
    assert torch.equal(model.get_input_embeddings().weight, llm.get_input_embeddings().weight)


def test_T8_only_the_projector_is_trainable(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {f"model.multi_modal_projector.linear.{kind}" for kind in ("weight", "bias")}
    objective = Connector(model, processor)
    assert {name for name, _ in objective.named_parameters()} == {"projector.weight", "projector.bias"}
    assert set(objective.state_dict()) == {"projector.weight", "projector.bias"}
    assert not objective.train().vlms[0].training  # dropout of what is frozen stays off


def test_T9_the_projector_starts_small_but_not_at_zero(tmp_path: Path) -> None:
    """Zero would make the first gradient hundreds of times larger through the LLM's RMSNorm."""
    model, processor = assemble(tiny.backbone(tmp_path) / "backbone", tiny.llm(), tiny.tokenizer())
    linear = model.model.multi_modal_projector.linear
    # not the tiny LLM's 0.2; the deviation of 2048 draws differs by 1.6 % from that of their distribution
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not linear.bias.any()
    norms = []
    for scale in (1.0, 0.0):
        with torch.no_grad():
            linear.weight.mul_(scale)
        batch = {**Collator(processor, 8)([tiny.SIDE], ["no"]), "pixels": torch.ones(1, 3, 16, 16, dtype=torch.uint8)}
        weight, bias = torch.autograd.grad(Connector(model, processor)(batch)["loss"], [linear.weight, linear.bias])
        norms.append(float(torch.cat([weight.flatten(), bias]).norm()))
    assert norms[0] < 0.1 * norms[1]


def assert_same_weights_and_logits(loaded: Any, model: Any, batch: dict[str, Tensor]) -> None:
    """Weights to the bit. Those of `loaded` lie in the file's memory, not aligned as torch aligns its own, so that
    products may be computed with other instructions."""
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=LOGITS, rtol=LAYERS_FLOAT32)


def test_an_untied_head_survives_saving(tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path, tied=False)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    assert not loaded.config.tie_word_embeddings
    assert torch.equal(loaded.lm_head.weight[: len(tiny.tokenizer())], tiny.llm(tied=False).lm_head.weight)
    assert_same_weights_and_logits(loaded, model, inputs(processor, *PAIRS))


def test_a_loaded_model_gives_the_same_answers(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, reader = load_vlm(tmp_path)
    assert_same_weights_and_logits(loaded, model, inputs(processor, *PAIRS))
    image = Image.new("RGB", (40, 20), "green")
    assert generate_answers(loaded, reader, [image], [tiny.SIDE], 6) == generate_answers(
        model, processor, [image], [tiny.SIDE], 6
    )
    assert "/" not in json.loads((tmp_path / "config.json").read_text())["vision_config"].get("_name_or_path", "")
    assert not list(tmp_path.glob("*.bin"))


def test_assembling_twice_gives_the_same_weights(tmp_path: Path) -> None:
    """Also in the tower's unused pooler."""
    one, other = (tiny.vlm(tmp_path)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not any(parameter.any() for parameter in one.model.vision_tower.pooler.parameters())


def test_the_tower_gives_the_tokens_of_the_backbone(tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path)
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    normalized = processor(images=[[image]], text=["<image>?"], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = model.model.vision_tower(normalized).last_hidden_state
        expected = load_backbone(tmp_path / "backbone").eval().tokens(pixels)
        torch.testing.assert_close(tokens[:, 1:], expected, atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)
    assert tokens.shape[1] == processor.image_seq_length == 5


def test_images_of_any_size_and_mode_are_accepted(llama: tuple[Any, Any]) -> None:
    model, processor = llama
    photos = [Image.new("RGB", (640, 480), "red"), Image.new("L", (20, 300)), Image.new("RGBA", (33, 17))]
    assert len(generate_answers(model, processor, photos, [tiny.SIDE, tiny.COLOR, "?"], 4)) == 3
