"""Scores answers: compared with guesses that do not see the photo, and by kind of question."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from components.connector.cider import cider_d
from components.connector.scoring import (
    blind_answers,
    bootstrap,
    derangement,
    normalized,
    question_kinds,
    vqa_accuracy,
)
from components.data.entries import DESCRIBE
from components.evaluation.statistics import wilson

FREQUENT = 4  # training answers that describe a kind of question
PER_QUESTION = {"asked": pl.len(), "exact_match": pl.mean("correct"), "blind": pl.mean("blind")}


def score_answers(lines: pl.DataFrame, training: pl.DataFrame, seed: int) -> dict[str, Any]:
    """Returns the scores of the answers and of the blind guess, the most frequent training answer to each question.

    lines: row, question, expected, answer, correct. exact_match, blind, over_blind (the first minus the second) and
    vqa_accuracy are over all questions but descriptions, which have no single right answer; those have cider_d.
    Intervals are over photos, as answers about one photo are not independent.
    """
    pairs = list(training.select("question", "answer").iter_rows())
    guesses, kinds = blind_answers(pairs), question_kinds(pairs, lines["question"].to_list())
    expected = lines.select("question", "expected").iter_rows()
    is_blind_correct = [normalized(guesses.get(question, "")) == normalized(answer) for question, answer in expected]
    lines = lines.with_columns(
        blind=pl.Series(is_blind_correct, dtype=pl.Boolean), kind=pl.col("question").replace(kinds)
    )
    metrics: dict[str, Any] = {"pictures": lines["row"].n_unique(), "questions": len(lines)}
    if len(short_answers := lines.filter(pl.col("question") != DESCRIBE)):
        metrics |= {
            "exact_match": _proportion(short_answers, "correct", seed),
            "blind": _proportion(short_answers, "blind", seed),
        }
        metrics["over_blind"] = _difference(short_answers, metrics["exact_match"], metrics["blind"], seed)
        people = short_answers.group_by("row", "question", maintain_order=True).agg(pl.first("answer"), "expected")
        accuracy = [
            vqa_accuracy(answer, references) for answer, references in people.select("answer", "expected").iter_rows()
        ]
        metrics["vqa_accuracy"] = _proportion(people.with_columns(score=pl.Series(accuracy)), "score", seed)
    if (captions := lines.filter(pl.col("question") == DESCRIBE))["row"].n_unique() > 1:
        metrics["cider_d"] = score_captions(captions, guesses.get(DESCRIBE, ""), seed)
    metrics["per_kind"] = {kind: _score_kind(lines.filter(kind=kind), training, seed) for kind in _by_size(lines)}
    per_question = lines.group_by("question").agg(**PER_QUESTION).sort("question").to_dicts()
    return {**metrics, "per_question": {line.pop("question"): line for line in per_question}}


def score_captions(lines: pl.DataFrame, constant: str, seed: int) -> dict[str, Any]:
    """Returns the mean CIDEr-D of the captions, of one caption for all photos, and of captions of other photos.

    lines: row, answer, expected; a photo may have several expected captions. Of two photos or more.
    """
    photos = lines.group_by("row", maintain_order=True).agg(pl.first("answer"), "expected")
    rows, captions, references = photos["row"].to_numpy(), photos["answer"].to_list(), photos["expected"].to_list()
    caption_of = dict(zip(rows.tolist(), captions, strict=True))
    other_captions = [caption_of[row] for row in derangement(rows, seed).tolist()]
    scores, blind_scores, shuffled_scores = (
        cider_d(texts, references) for texts in (captions, [constant] * len(rows), other_captions)
    )
    low, high = bootstrap(scores, rows, seed)
    value = {"value": float(scores.mean()), "low": low, "high": high, "of": len(rows)}
    return {**value, "blind": float(blind_scores.mean()), "shuffled": float(shuffled_scores.mean())}


def score_losses(losses: dict[str, np.ndarray], rows: np.ndarray, seed: int) -> dict[str, Any]:
    """Returns the mean losses, and by how much they rise without the right photo: gap (shuffled) and gap_blank.

    losses: of the expected answers with the right photo, a blank one, and perhaps shuffled ones, float64 [N] each.
    """
    metrics: dict[str, Any] = {f"loss_{name}": float(values.mean()) for name, values in losses.items()}
    for name, gap in (("shuffled", "gap"), ("blank", "gap_blank")):
        if name in losses:
            rise = losses[name] - losses["right"]
            low, high = bootstrap(rise, rows, seed)
            metrics[gap] = {"value": float(rise.mean()), "low": low, "high": high}
    return metrics


def sees(metrics: dict[str, Any]) -> bool:
    """Returns True if seeing the photo makes the answers better.

    Both have to be above 0 with 95 % confidence: by how much exact match exceeds the blind guess on the same questions
    (if there are others than descriptions), and by how much the loss rises with another photo.
    """
    return bool(metrics["gap"]["low"] > 0 and metrics.get("over_blind", {"low": 1})["low"] > 0)


def _proportion(lines: pl.DataFrame, column: str, seed: int) -> dict[str, Any]:
    values, images = lines[column].to_numpy().astype(float), lines["row"].n_unique()
    low, high = bootstrap(values, lines["row"].to_numpy(), seed)
    if low == high:  # all values are equal, so resampling them gives no width
        low, high = wilson(round(values.mean() * images), images)
    return {"value": float(values.mean()), "low": low, "high": high, "of": len(lines)}


def _difference(lines: pl.DataFrame, first: dict[str, Any], second: dict[str, Any], seed: int) -> dict[str, Any]:
    """Returns by how much answers exceed the blind guess on the same questions, with a paired interval."""
    values = lines["correct"].to_numpy().astype(float) - lines["blind"].to_numpy()
    low, high = bootstrap(values, lines["row"].to_numpy(), seed)
    if low == high:  # as above; without pairs the interval is wider
        low, high = first["low"] - second["high"], first["high"] - second["low"]
    return {"value": float(values.mean()), "low": low, "high": high, "of": len(lines)}


def _score_kind(lines: pl.DataFrame, training: pl.DataFrame, seed: int) -> dict[str, Any]:
    """Returns the scores of one kind of question, how many wordings were asked, and its frequent training answers."""
    wordings = lines["question"].unique().to_list()
    counts = training.filter(pl.col("question").is_in(wordings))["answer"].value_counts()
    counts = counts.sort(["count", "answer"], descending=[True, False])
    return {
        "wordings": len(wordings),
        "answers": counts["answer"].head(FREQUENT).to_list(),
        "more_answers": max(0, len(counts) - FREQUENT),
        "exact_match": _proportion(lines, "correct", seed),
        "blind": float(lines["blind"].mean()),  # type: ignore[arg-type]
    }


def _by_size(lines: pl.DataFrame) -> list[str]:
    """Returns the kinds of questions, the one that was asked most often first, descriptions last."""
    counts = lines["kind"].value_counts().sort(["count", "kind"], descending=[True, False])
    return sorted(counts["kind"].to_list(), key=lambda kind: kind == DESCRIBE)
