"""CLIP's loss is the paper's, equal texts match, and tokens come from the training photos' own texts."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from naive import TINY, assert_directional_gradients, pixels, softmax

from components.config import parse
from components.data import tokens as module
from components.data.entries import DESCRIBE
from components.data.fields import make_batch
from components.data.photos import Photos
from components.data.texts import captions_or_class_names
from components.data.tokens import END, FEWEST, Tokens, tokenized_texts, train_tokenizer
from components.methods.clip import CLIP, CLIPConfig, symmetric_cross_entropy
from components.models.backbone import build
from components.stages.pretrain_config import configure, resolve, training_rows

ROOT = Path(__file__).parents[2]
TEXTS = ["a red bird", "two red birds", "ein Vogel, größer", "一只鸟"]
SMALL = {"dim": 6, "text_width": 8, "text_depth": 1, "text_heads": 2, "context_length": 9, "vocabulary": FEWEST}
PRETRAIN = {
    "common": {"backbone": {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}},
    "clip": {**SMALL, "context_length": 77, "vocabulary": 49408, "batch_size": 8, "epochs": 1},
}


def tokens(rows):
    """Returns int64 [len(rows), 9]: <start>, three bytes that only equal numbers share, <end>."""
    table = torch.full((len(rows), 9), END)
    table[:, 0], table[:, 1:4] = 0, 2 + torch.tensor(rows)[:, None]
    return table


def method(temperature=0.07):
    torch.manual_seed(0)
    built = CLIP(build(TINY), CLIPConfig(**SMALL, temperature=temperature)).double().train()
    with torch.no_grad():
        for parameter in built.text_model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return built


def embeddings(clip, images, text):
    """Returns the unit vectors of both towers: numpy [B, D] each."""
    with torch.no_grad():
        both = (
            clip.visual_projection(clip.backbone(images)),
            clip.text_projection(clip.text_model(text).pooler_output),
        )
    return [x.numpy() / np.sqrt((x.numpy() ** 2).sum(1, keepdims=True)) for x in both]


def paper(clip, images, text):
    """Figure 3: logits = I_e · T_e^T · exp(t); labels = arange(n); the mean of the losses along both axes."""
    image_e, text_e = embeddings(clip, images, text)
    logits = image_e @ text_e.T * math.exp(clip.log_scale.item())
    count = len(logits)
    loss_i = -sum(math.log(softmax(logits[i])[i]) for i in range(count)) / count
    loss_t = -sum(math.log(softmax(logits[:, i])[i]) for i in range(count)) / count
    return (loss_i + loss_t) / 2


def test_loss_and_gradients_are_the_papers_where_all_texts_differ():
    clip, images, text = method(), pixels(0)[0], tokens([3, 0, 6, 1, 5])
    losses = clip([images, text])
    assert losses["loss"].item() == pytest.approx(paper(clip, images, text), abs=1e-6)
    assert losses["scale"].item() == pytest.approx(1 / 0.07)
    assert_directional_gradients(clip, losses["loss"], lambda: paper(clip, images, text))
    image_e, text_e = embeddings(clip, images, text)
    assert losses["accuracy"].item() == pytest.approx(np.mean((image_e @ text_e.T).argmax(1) == np.arange(5)))


def test_equal_texts_share_the_target():
    """Targets spread evenly over all photos with the text give the loss of the paper, since their logits are equal."""
    clip, images, numbers = method(), pixels(0)[0], [3, 0, 3, 3, 5]
    text = tokens(numbers)
    image_e, text_e = embeddings(clip, images, text)

    def spread():
        image_e, text_e = embeddings(clip, images, text)
        logits, total = image_e @ text_e.T * math.exp(clip.log_scale.item()), 0.0
        for rows in (logits, logits.T):
            for i, row in enumerate(rows):
                same = [j for j in range(5) if numbers[j] == numbers[i]]
                total -= sum(math.log(softmax(row)[j]) / len(same) for j in same) / 5 / 2
        return total

    losses = clip([images, text])
    assert losses["loss"].item() == pytest.approx(spread(), abs=1e-6)
    assert_directional_gradients(clip, losses["loss"], spread)
    nearest = (image_e @ text_e.T).argmax(1)
    assert losses["accuracy"].item() == pytest.approx(
        np.mean([numbers[j] == numbers[i] for i, j in enumerate(nearest)])
    )
    vectors = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 0, 2])).double()
    perfect, accuracy = symmetric_cross_entropy(vectors, vectors, torch.tensor(100.0))
    assert perfect.item() == pytest.approx(3 * math.log(3) / 5)  # as low as it gets: the entropy of the targets
    assert accuracy == 1


def test_padding_changes_nothing_and_the_scale_stays_below_a_hundred():
    clip, text = method(), tokens([3, 0])
    with torch.no_grad():
        short, long = (clip.text_model(x).pooler_output for x in (text[:, :6], text))
        torch.testing.assert_close(short, long)
        clip.log_scale.fill_(9.0)
    clip.after_step()
    assert clip.log_scale.exp().item() == pytest.approx(100)
    with pytest.raises(ValueError, match="text_width 9 is not a multiple of text_heads 2; try text_width: 10"):
        CLIP(build(TINY), CLIPConfig(**{**SMALL, "text_width": 9}))


def test_tokens_are_bytes_and_frequent_words_in_lower_case():
    tokenizer = train_tokenizer(TEXTS, 49408)
    for text in (*TEXTS, "a word that is nowhere: naïve 🐦"):
        ids = tokenizer.encode(text).ids
        assert (ids[0], ids[-1]) == (0, END)
        assert tokenizer.decode(ids) == f" {text.lower()}"
    assert tokenizer.encode("RED red").tokens == ["<start>", "Ġred", "Ġred", "<end>"]
    assert train_tokenizer(TEXTS, FEWEST).get_vocab_size() == FEWEST
    size = tokenizer.get_vocab_size()
    assert train_tokenizer(TEXTS, size).to_str() == tokenizer.to_str()  # so that a resolved config resolves to itself


def test_every_process_learns_the_same_tokens():
    """Hash maps have another order in each process."""
    script = "import sys; from components.data.tokens import train_tokenizer as t; print(t(sys.argv[1:], 999).to_str())"
    words = [" ".join(f"{a}{b}{a} {b}{b}" for a in "abcdef") for b in "ghijklmn"]
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode() == f"{train_tokenizer(words, 999).to_str()}\n"


@pytest.fixture
def captioned(prepared, tmp_path):
    """The photos with captions for the first 30 training photos, two for the first, and labels for every second one."""
    for file in prepared.iterdir():
        if file.is_file() and file.name not in ("index.npz", "questions.parquet"):
            (tmp_path / file.name).symlink_to(file)
    with np.load(prepared / "index.npz") as index:
        held = dict(index)
    held["labels"][1::2] = -1
    np.savez(tmp_path / "index.npz", **held)
    rows = Photos(prepared).rows("train")[:30].tolist()
    answers = ["a first text", *(f"text number {row % 4}" for row in rows)]
    table = {"row": [rows[0], *rows], "question": [DESCRIBE] * 31, "answer": answers}
    pl.DataFrame(table).write_parquet(tmp_path / "questions.parquet")
    return Photos(tmp_path)


def test_photos_without_a_text_are_left_out(captioned):
    rows = captioned.rows("train")
    config = configure("clip", PRETRAIN)
    expected = [row for row in rows.tolist() if row in rows[:30] or row % 2 == 0]
    assert training_rows(config, captioned).tolist() == expected
    assert 30 < len(expected) < len(rows)
    captions_only = configure("clip", {**PRETRAIN, "clip": {**PRETRAIN["clip"], "class_names": False}})
    assert training_rows(captions_only, captioned).tolist() == rows[:30].tolist()
    texts = captions_or_class_names(captioned, class_names=True)
    assert len(texts[rows[0]]) == 2
    assert texts[expected[-1]][0].startswith("This is a photo of ")
    resolved = resolve(config, captioned, 1).settings
    assert FEWEST < resolved.vocabulary < 400
    assert resolved.context_length == max(
        len(train_tokenizer([t for own in texts.values() for t in own], 49408).encode(t).ids)
        for own in texts.values()
        for t in own
    )
    assert CLIP.resolve(resolved, captioned) == resolved


def test_a_text_of_each_photo_is_drawn_anew_in_every_epoch(captioned):
    rows = captioned.rows("train")[:30]
    field = Tokens(20, 400, class_names=False)
    first, second = (
        torch.stack([make_batch(captioned, rows, [field], 0, epoch)[0] for epoch in range(20)]) for _ in "12"
    )
    assert torch.equal(first, second)
    assert first.shape == (20, 30, 20)
    assert {len(first[:, place].unique(dim=0)) for place in range(1, 30)} == {1}
    assert len(first[:, 0].unique(dim=0)) == 2
    parts = [make_batch(captioned, part, [field], 0, 3)[0] for part in (rows[:15], rows[15:])]  # two processes
    assert torch.equal(torch.cat(parts), first[3])
    cut = tokenized_texts(captioned.folder, 4, 400, class_names=False).tokens
    assert (cut[:, 0] == 0).all()
    assert (cut[:, 3] == END).all()


def test_photos_without_texts_are_refused_with_advice(captioned):
    config = configure("clip", {**PRETRAIN, "clip": {**PRETRAIN["clip"], "class_names": False}})
    questions = captioned.folder / "questions.parquet"
    for answers, found in ((["same"] * 31, "have one text, all the same"), ([], "have no text")):
        pl.read_parquet(questions).head(len(answers)).with_columns(
            answer=pl.Series(answers, dtype=pl.String)
        ).write_parquet(questions)
        module.tokenized_texts.cache_clear()
        with pytest.raises(
            ValueError, match=rf"pretrain.clip: clip needs captions or labels: .* {found}; try a captions"
        ):
            resolve(config, captioned, 1)


def test_defaults_are_the_papers():
    config = parse(CLIPConfig, {}, "clip")
    assert config.optimizer.lr * math.sqrt(32768 / 256) == pytest.approx(5e-4, rel=0.01)
    view, _ = CLIP.views(config, 224)
    assert (view.flip, view.jitter, view.gray, view.blur) == (0.0, None, 0.0, 0.0)
