from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.connector.collate import BUCKET, Collator, epoch_batches
from components.connector.packing import IGNORE
from tests.connector import tiny

# transformers' own processor hands a tensor to numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUESTIONS = ["What color is it?", "no mark at the end", "two\nlines", " spaces around ", "?", "", "ein Bär, 12 Stück"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory):
    return tiny.vlm(tmp_path_factory.mktemp("vlm"))[1]


@pytest.mark.parametrize("question", QUESTIONS)
def test_prefix_is_token_for_token_what_the_stock_processor_builds(processor, question: str) -> None:
    image = Image.new("RGB", (20, 30))
    stock = processor(images=[[image]], text=["<image>" + question], return_tensors="pt")
    assert Collator(processor, 64).prefix(question) == stock["input_ids"][0].tolist()


def test_tokens_masks_and_labels_of_a_batch(processor) -> None:
    """[image x 5, BOS, question, "\\n", answer, EOS, PAD]; "\\n" and EOS stand alone, labels only on the answer."""
    tokens = processor.tokenizer
    batch = Collator(processor, 64)(["Is it bright?", "Is it bright?"], ["no", "a bright picture"])
    newline = tokens.convert_tokens_to_ids("Ċ")
    question = tokens("Is it bright?")["input_ids"]
    no, image = tokens("no")["input_ids"], tokens.convert_tokens_to_ids("<image>")
    expected = [image] * 5 + [1] + question + [newline] + no + [2]
    row = batch["input_ids"][0].tolist()
    assert row[: len(expected)] == expected
    assert set(row[len(expected) :]) == {tokens.pad_token_id}
    prefix = len(expected) - len(no) - 1
    kinds, labels = batch["token_type_ids"][0], batch["labels"][0]
    assert kinds.tolist() == [0] * prefix + [1] * (len(row) - prefix)
    assert batch["attention_mask"][0].tolist() == [1] * len(expected) + [0] * (len(row) - len(expected))
    assert labels.tolist() == [IGNORE] * prefix + [*no, 2] + [IGNORE] * (len(row) - len(expected))


def test_eos_has_a_label_although_it_is_also_the_padding(processor) -> None:
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id
    labels = Collator(processor, 64)([tiny.SIDE] * 2, ["no", "a bright picture"])["labels"]
    assert (labels == processor.tokenizer.eos_token_id).sum(1).tolist() == [1, 1]


def test_long_answers_are_cut(processor) -> None:
    assert len(Collator(processor, 8).suffix("blue " * 50)) == 8


def test_lengths_are_those_of_the_tokens(processor) -> None:
    collator = Collator(processor, 64)
    questions, answers = [tiny.COLOR, tiny.SIDE, tiny.COLOR], ["red", "no", "a bright picture"]
    masks = [collator([q], [a])["attention_mask"].sum() for q, a in zip(questions, answers, strict=True)]
    assert collator.lengths(questions, answers).tolist() == [int(length) for length in masks]


def test_an_epoch_has_every_example_once_in_batches_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(40, 80, 1000)
    batches = epoch_batches(lengths, np.arange(1000), 16, seed=0, epoch=0)
    assert batches.shape == (62, 16)
    assert len(np.unique(batches)) == batches.size
    padded = lengths[batches].max(1).sum() * 16
    assert padded < 1.12 * lengths[batches].sum()
    assert padded < 0.9 * lengths[np.random.default_rng(1).permutation(992).reshape(-1, 16)].max(1).sum() * 16
    assert (batches == epoch_batches(lengths, np.arange(1000), 16, seed=0, epoch=0)).all()
    assert (batches != epoch_batches(lengths, np.arange(1000), 16, seed=0, epoch=1)).any()
    assert BUCKET > 1


def test_without_a_bos_token_the_prompt_has_eos_in_its_place(tmp_path: Path) -> None:
    from components.connector.vlm import assemble

    tokens = tiny.tokenizer(bos=False)
    _, processor = assemble(tiny.backbone(tmp_path) / "backbone", tiny.llm(), tokens)
    ids = Collator(processor, 8).prefix("?")
    assert ids[5] == tokens.eos_token_id
    assert "None" not in processor.tokenizer.decode(ids)
    assert torch.tensor(ids).max() < len(tokens)
