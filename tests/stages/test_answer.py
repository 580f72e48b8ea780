from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from components.config import read_section
from components.connector.answer_scores import score_answers, sees
from components.connector.answering import load_vlm
from components.connector.collate import Collator
from components.data.entries import DESCRIBE
from components.data.photos import Photos
from components.evaluation.statistics import wilson
from components.stages.answer import AnswerConfig, answer, select_questions
from components.stages.connect import ConnectConfig, connect
from components.training import optim
from tests.connector import tiny
from tests.tolerances import LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def trained(folder: Path, steps: int) -> Path:
    """Writes to `folder`/connect what connect does after a short training on the questions in `folder`/prepare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_SCRATCH", str(folder / "scratch"))
        tiny.llm_folder(folder / "llm", tied=False)
        rate = optim.AdamW(lr=0.03, clip=1.0, schedule=optim.Cosine(warmup=0.05))
        config = ConnectConfig(
            method="simclr", llm=str(folder / "llm"), steps=steps, batch_size=8, answer_tokens=16, optimizer=rate
        )
        connect(config, tiny.backbone(folder / "simclr"), folder / "prepare", folder / "connect")
    return folder


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what connect wrote after a short training on the colors of images."""
    folder = tmp_path_factory.mktemp("artifacts")
    tiny.prepared(folder / "prepare")
    return trained(folder, steps=100)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one question only, which the tiny language model learns to answer."""
    folder = tmp_path_factory.mktemp("seeing")
    questions = tiny.prepared(folder / "prepare") / "questions.parquet"
    pl.read_parquet(questions).filter(question=tiny.COLOR).write_parquet(questions)
    return trained(folder, steps=60)


@pytest.fixture(scope="module")
def result(artifacts: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    metrics = answer(
        AnswerConfig(pictures=12, batch_size=5), artifacts / "connect", artifacts / "prepare", artifacts / "answer"
    )
    lines = [json.loads(line) for line in (artifacts / "answer" / "answers.jsonl").read_text().splitlines()]
    return lines, metrics


def test_the_section_in_params_yaml_is_valid() -> None:
    assert read_section("answer", AnswerConfig).pictures >= 2


def test_losses_of_packed_questions_are_those_of_one_row_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.prepared(tmp_path / "prepare")
    model, processor = tiny.vlm(tmp_path, eyes=tiny.cnn)
    for saved in (model, processor):
        saved.save_pretrained(tmp_path / "connect" / "model")
    settings = AnswerConfig(pictures=6, batch_size=4, max_new_tokens=1)
    for name in ("packed", "apart"):
        (tmp_path / name).mkdir()
    packed = answer(settings, tmp_path / "connect", tmp_path / "prepare", tmp_path / "packed")
    make = Collator.__init__

    def apart(collator: Collator, *args: Any) -> None:
        make(collator, *args)
        assert collator.packs
        collator.packs = False

    monkeypatch.setattr(Collator, "__init__", apart)
    expected = answer(settings, tmp_path / "connect", tmp_path / "prepare", tmp_path / "apart")
    for name in ("loss_right", "loss_shuffled", "loss_blank"):
        assert packed[name] == pytest.approx(expected[name], rel=LAYERS_FLOAT32)
    bounds = [[scores["gap"][end] for end in ("low", "value", "high")] for scores in (packed, expected)]
    assert bounds[0] == pytest.approx(bounds[1], abs=LAYERS_FLOAT32)  # drawn by photo, so that their order counts


def test_every_question_about_the_selected_images_is_answered(artifacts: Path, result: Any) -> None:
    lines, metrics = result
    photos = Photos(artifacts / "prepare")
    assert metrics["pictures"] == 12
    assert len(lines) == metrics["questions"] == 36
    manifest = photos.manifest
    for line in lines:
        assert list(line) == ["row", "path", "label", "question", "expected", "answer", "correct"]
        row = manifest.row(line["row"], named=True)
        assert (line["path"], line["label"], "test") == (row["path"], row["label"], row["split"])
    expected = {(row, question): reply for row, question, reply in photos.questions("test").iter_rows()}
    assert all(expected[line["row"], line["question"]] == line["expected"] for line in lines)


def test_metrics_are_those_of_the_answers(artifacts: Path, result: Any) -> None:
    lines, metrics = result
    short = [line for line in lines if line["question"] != DESCRIBE]
    match = metrics["exact_match"]
    assert match["value"] == pytest.approx(np.mean([line["correct"] for line in short]))
    assert match["low"] <= match["value"] <= match["high"]
    assert set(metrics["per_question"]) == {tiny.COLOR, tiny.SIDE, DESCRIBE}
    assert metrics["per_question"][tiny.COLOR]["asked"] == 12
    assert metrics["gap"]["value"] == pytest.approx(metrics["loss_shuffled"] - metrics["loss_right"])
    assert metrics["gap_blank"]["value"] == pytest.approx(metrics["loss_blank"] - metrics["loss_right"])
    for name in ("gap", "gap_blank", "over_blind", "vqa_accuracy", "cider_d"):
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"], name
    assert metrics["over_blind"]["value"] == pytest.approx(match["value"] - metrics["blind"]["value"])
    assert metrics["vqa_accuracy"] == match  # one expected answer each
    assert json.loads((artifacts / "answer" / "metrics.json").read_text()) == metrics
    assert json.loads((artifacts / "answer" / "config.json").read_text())["pictures"] == 12


def test_answers_of_a_trained_model_depend_on_the_image(result: Any) -> None:
    assert result[1]["gap"]["low"] > 0
    assert result[1]["gap_blank"]["low"] > 0


def test_a_model_that_names_the_colors_sees_and_without_its_projector_is_blind(seeing: Path, tmp_path: Path) -> None:
    config = AnswerConfig(pictures=16, max_new_tokens=8)
    metrics = answer(config, seeing / "connect", seeing / "prepare", tmp_path / "answer")
    assert metrics["sees"] is True
    assert metrics["exact_match"]["value"] > 0.7
    assert "cider_d" not in metrics  # there are no captions
    model, processor = load_vlm(seeing / "connect" / "model")
    with torch.no_grad():
        model.model.multi_modal_projector.linear.weight.zero_()
    model.save_pretrained(tmp_path / "blind" / "model")
    processor.save_pretrained(tmp_path / "blind" / "model")
    metrics = answer(config, tmp_path / "blind", seeing / "prepare", tmp_path / "answer")
    assert metrics["sees"] is False
    assert metrics["gap"] == metrics["gap_blank"] == {"value": 0, "low": 0, "high": 0}
    assert metrics["exact_match"]["value"] <= metrics["blind"]["value"]


def test_metrics_by_kind_are_those_of_its_questions(result: Any) -> None:
    lines, metrics = result
    assert set(metrics["per_kind"]) == {tiny.COLOR, tiny.SIDE, DESCRIBE}
    assert list(metrics["per_kind"])[-1] == DESCRIBE
    color = metrics["per_kind"][tiny.COLOR]
    right = [line["correct"] for line in lines if line["question"] == tiny.COLOR]
    assert (color["exact_match"]["value"], color["exact_match"]["of"]) == (pytest.approx(np.mean(right)), 12)
    assert color["blind"] == metrics["per_question"][tiny.COLOR]["blind"]
    assert (color["answers"], color["more_answers"], color["wordings"]) == (sorted(tiny.COLORS), 0, 1)


def test_the_seed_decides_which_images_are_selected(artifacts: Path) -> None:
    photos = Photos(artifacts / "prepare")
    first, again, other = (
        set(select_questions(photos, AnswerConfig(pictures=4, seed=seed))["row"].to_list()) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(first) == 4


def test_the_blind_guess_is_scored_on_the_same_questions() -> None:
    lines = pl.DataFrame({"row": [0, 1, 2], "question": ["color?"] * 3, "expected": ["a red", "Red", "blue"]})
    lines = lines.with_columns(answer=pl.lit("blue"), correct=pl.Series([False, False, True]))
    training = pl.DataFrame({"row": [9, 9], "question": ["color?", "color?"], "answer": ["red", "red"]})
    metrics = score_answers(lines, training, seed=0)
    assert metrics["blind"]["value"] == pytest.approx(2 / 3)
    assert metrics["exact_match"]["value"] == pytest.approx(1 / 3)
    assert (metrics["exact_match"]["low"], metrics["exact_match"]["high"]) == (0.0, 1.0)  # of three images
    assert metrics["per_question"] == {"color?": {"asked": 3, "exact_match": 1 / 3, "blind": 2 / 3}}


def test_the_interval_of_answers_that_are_all_wrong_has_a_width() -> None:
    rows = [
        {"row": row, "question": "color?", "expected": "red", "answer": "blue", "correct": False}
        for row in (0, 0, 1, 2)
    ]
    metrics = score_answers(pl.DataFrame(rows), pl.DataFrame({"question": ["color?"], "answer": ["blue"]}), seed=0)
    assert metrics["exact_match"]["low"] == 0
    assert metrics["exact_match"]["high"] == wilson(0, 3)[1] > 0.5


@pytest.mark.parametrize(
    ("over_blind", "gap", "expected"),
    [((0.1, 0.5), (0.1, 1), True), ((0, 0.5), (0.1, 1), False), ((0.1, 0.5), (-0.1, 1), False), (None, (0.1, 1), True)],
)
def test_a_model_sees_if_both_intervals_lie_above_zero(over_blind: Any, gap: Any, expected: bool) -> None:
    metrics = {"gap": {"low": gap[0], "high": gap[1]}}
    if over_blind:  # photos that have only captions have none
        metrics["over_blind"] = {"low": over_blind[0], "high": over_blind[1]}
    assert sees(metrics) is expected


def test_better_than_blind_is_judged_on_the_same_photos() -> None:
    """Half of the photos are easy for both; unpaired intervals would overlap."""
    rows = [
        {
            "row": row,
            "question": "color?",
            "expected": "red" if row % 2 else "blue",
            "answer": "red",
            "correct": row < 80,
        }
        for row in range(100)
    ]
    training = pl.DataFrame({"question": ["color?"], "answer": ["red"]})
    over = score_answers(pl.DataFrame(rows), training, seed=0)["over_blind"]
    right, blind = np.arange(100) < 80, np.arange(100) % 2 == 1
    difference = right.astype(float) - blind
    assert over["value"] == pytest.approx(difference.mean())
    half = 1.96 * difference.std() / 10
    assert over["high"] - over["low"] == pytest.approx(2 * half, rel=0.1)  # quantiles of 2,000 draws
    certain = [
        {"row": row, "question": "color?", "expected": "blue", "answer": "blue", "correct": True} for row in (0, 1)
    ]
    assert score_answers(pl.DataFrame(certain), training, seed=0)["over_blind"]["low"] < 0  # two photos prove nothing


def test_several_expected_answers_and_captions_of_a_photo_are_scored_together() -> None:
    answers = [(0, "color?", "red", "red"), (0, "color?", "dark red", "red"), (1, "color?", "blue", "red")]
    answers += [
        (0, DESCRIBE, "a red car", "a red car"),
        (0, DESCRIBE, "cars", "a red car"),
        (1, DESCRIBE, "sky", "sky"),
    ]
    lines = pl.DataFrame(answers, schema=["row", "question", "expected", "answer"], orient="row")
    lines = lines.with_columns(correct=pl.col("expected") == pl.col("answer"))
    metrics = score_answers(lines, pl.DataFrame({"question": ["color?"], "answer": ["red"]}), seed=0)
    assert (metrics["vqa_accuracy"]["value"], metrics["vqa_accuracy"]["of"]) == (0.25, 2)
    assert metrics["exact_match"]["value"] == pytest.approx(1 / 3)
    assert metrics["cider_d"]["of"] == 2
    assert metrics["cider_d"]["shuffled"] == metrics["cider_d"]["blind"] == 0


def test_answer_is_skipped_if_connect_was(tmp_path: Path) -> None:
    data = tiny.prepared(tmp_path / "mute", questions=False)
    (tmp_path / "connect").mkdir()
    (tmp_path / "connect" / "metrics.json").write_text('{"skipped": "nothing to learn from"}')
    metrics = answer(AnswerConfig(pictures=4), tmp_path / "connect", data, tmp_path / "answer")
    assert metrics == {"skipped": "nothing to learn from"}
    assert {path.name for path in (tmp_path / "answer").iterdir()} == {"answers.jsonl", "config.json", "metrics.json"}


def test_a_missing_model_is_refused(artifacts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the connect stage first"):
        answer(AnswerConfig(pictures=4), tmp_path, artifacts / "prepare", tmp_path / "answer")
