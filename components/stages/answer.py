"""Stage: a vision-language model -> its answers about test photos, and how much they depend on the photo."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from pydantic import Field

from components.config import Seed, Strict, read_section, write_config
from components.connector.answering import generate_answers, load_vlm
from components.connector.collate import Collator, squares_for
from components.connector.objective import Connector
from components.connector.scoring import blind_answers, bootstrap, derangement, normalized
from components.data.entries import DESCRIBE
from components.data.photos import Photos
from components.evaluation.statistics import wilson
from components.machine import keep_memory
from components.stages.exit_code import exit_code
from components.training.loop import accelerator


class AnswerConfig(Strict):
    pictures: int = Field(ge=2)  # of the test split
    batch_size: int = Field(32, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    seed: Seed = 0


def answer(config: AnswerConfig, model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Writes answers.jsonl, metrics.json and config.json to `out`. Returns the metrics.

    If connect was skipped, or the test photos have no questions, metrics.json says why there are no answers.
    """
    photos = Photos(data)
    questions = select_questions(photos, config)
    connect_metrics = model / "metrics.json"
    skipped = (
        json.loads(connect_metrics.read_text(encoding="utf-8")).get("skipped") if connect_metrics.is_file() else None
    )
    if not skipped and not len(questions):
        skipped = "the test photos have no questions, labels or captions"
    if skipped:
        return _write(config, out, [], {"skipped": skipped})
    vlm, processor = load_vlm(model / "model")
    vlm.to(accelerator().device)
    answers: list[str] = []
    right, shuffled = np.empty(len(questions)), np.empty(len(questions))
    objective = Connector(vlm, processor).to(vlm.device)
    rows = questions["row"].to_numpy()
    other = derangement(rows, config.seed) if questions["row"].n_unique() > 1 else None
    for place in _batches(len(questions), config.batch_size):
        part = questions[place]
        images = [Image.fromarray(photos[row].permute(1, 2, 0).numpy()) for row in part["row"]]
        answers += generate_answers(vlm, processor, images, part["question"].to_list(), config.max_new_tokens)
        right[place] = answer_losses(objective, photos, processor, part, rows[place])
        if other is not None:
            shuffled[place] = answer_losses(objective, photos, processor, part, other[place])
    lines = questions.with_columns(answer=pl.Series(answers, dtype=pl.String)).with_columns(
        correct=pl.struct("answer", "expected").map_elements(_correct, return_dtype=pl.Boolean)
    )
    metrics = {**score_answers(lines, photos.questions("train"), config.seed), "loss_right": float(right.mean())}
    if other is not None:
        low, high = bootstrap(shuffled - right, rows, config.seed)
        gap = float((shuffled - right).mean())
        metrics |= {"loss_shuffled": float(shuffled.mean()), "gap": {"value": gap, "low": low, "high": high}}
    return _write(config, out, lines.sort("row", maintain_order=True).to_dicts(), metrics)


def select_questions(photos: Photos, config: AnswerConfig) -> pl.DataFrame:
    """Returns row, path, label, question and expected answer for some test photos, similar lengths together."""
    questions = photos.questions("test").rename({"answer": "expected"})
    rows = np.random.default_rng(config.seed).permutation(questions["row"].unique(maintain_order=True).to_numpy())
    details = photos.manifest.with_row_index("row").select(pl.col("row").cast(pl.Int64), "path", "label")
    selected = questions.filter(pl.col("row").is_in(rows[: config.pictures].tolist()))
    selected = selected.join(details, on="row", how="left")
    length = pl.struct(pl.col("expected").str.len_chars() // 16, pl.col("question").str.len_chars())  # less padding
    return selected.sort(length, "question", "row").select("row", "path", "label", "question", "expected")


@torch.inference_mode()
def answer_losses(
    objective: Connector, photos: Photos, processor: Any, questions: pl.DataFrame, rows: np.ndarray
) -> np.ndarray:
    """Returns the loss of each expected answer with the photos at `rows` as input, float64 [len(questions)]."""
    vlm = objective.vlms[0]
    batch = Collator(processor, 512)(questions["question"], questions["expected"])
    batch["pixels"] = squares_for(processor, photos)(rows)
    losses = objective.losses({name: value.to(vlm.device) for name, value in batch.items()})
    return losses.double().cpu().numpy()


def score_answers(lines: pl.DataFrame, training: pl.DataFrame, seed: int) -> dict[str, Any]:
    """Returns exact match and the blind guess, over all questions except for captions, and by question.

    Captions have no single right answer. Intervals are over photos, as answers about one photo are not independent.
    """
    blind = blind_answers(training.select("question", "answer").iter_rows())
    pairs = lines.select("question", "expected").iter_rows()
    guesses = [normalized(blind.get(question, "")) == normalized(expected) for question, expected in pairs]
    lines = lines.with_columns(blind=pl.Series(guesses, dtype=pl.Boolean))
    short = lines.filter(pl.col("question") != DESCRIBE)
    by_question = lines.group_by("question").agg(asked=pl.len(), exact_match=pl.mean("correct"), blind=pl.mean("blind"))
    metrics: dict[str, Any] = {"pictures": lines["row"].n_unique(), "questions": len(lines)}
    if len(short):
        for name, column in (("exact_match", "correct"), ("blind", "blind")):
            right = short[column].to_numpy().astype(float)
            images = short["row"].to_numpy()
            low, high = bootstrap(right, images, seed)
            if low == high:  # all values are equal, so resampling them gives no width
                low, high = wilson(round(right.mean() * metrics["pictures"]), metrics["pictures"])
            metrics[name] = {"value": float(right.mean()), "low": low, "high": high, "of": len(short)}
    return {**metrics, "per_question": {line.pop("question"): line for line in by_question.sort("question").to_dicts()}}


def _correct(pair: dict[str, str]) -> bool:
    return normalized(pair["answer"]) == normalized(pair["expected"])


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _write(config: AnswerConfig, out: Path, lines: list[dict[str, Any]], metrics: dict[str, Any]) -> dict[str, Any]:
    write_config(config, out / "config.json")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "answers.jsonl").write_text(text, encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder written by connect")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    keep_memory()
    with exit_code("answer", parser):
        metrics = answer(read_section("answer", AnswerConfig), args.model, args.data, args.out)
    for name, value in metrics.items():
        if isinstance(value, dict) and "low" in value:
            print("answer: {:11} {value:.3f} ({low:.3f} to {high:.3f})".format(name, **value))
        elif not isinstance(value, dict):
            print(f"answer: {name:11} {value}")


if __name__ == "__main__":
    main()
