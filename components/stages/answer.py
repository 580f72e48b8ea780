"""Stage: asks the vision-language model about test photos, and measures how much answers depend on the photo."""

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
from torch import Tensor

from components.config import Seed, Strict, read_section, write_config
from components.connector.answer_scores import score_answers, score_losses, sees
from components.connector.answering import generate_answers, load_vlm
from components.connector.collate import Collator, squares_for
from components.connector.objective import Connector
from components.connector.scoring import derangement, normalized
from components.data.photos import Photos
from components.machine import keep_memory
from components.stages.exit_code import command, exit_code
from components.training.loop import accelerator

GRAY = 128  # of the blank picture


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
    objective = Connector(vlm, processor).to(vlm.device)
    collator, squares = Collator(processor, 512), squares_for(processor, photos)
    rows = questions["row"].to_numpy()
    other_rows = derangement(rows, config.seed) if questions["row"].n_unique() > 1 else None
    losses = {
        name: np.empty(len(rows)) for name in ("right", "blank", *(["shuffled"] if other_rows is not None else []))
    }
    for span in _batches(len(questions), config.batch_size):
        part = questions[span]
        images = [Image.fromarray(photos[row].permute(1, 2, 0).numpy()) for row in part["row"]]
        answers += generate_answers(vlm, processor, images, part["question"].to_list(), config.max_new_tokens)
    order = np.argsort(rows, kind="stable") if collator.packs else np.arange(len(rows))
    for indices in (order[span] for span in _batches(len(order), config.batch_size)):
        batch = collator(questions["question"][indices], questions["expected"][indices], rows[indices])
        pixels = squares(collator.pictures(rows[indices]))
        losses["right"][indices] = answer_losses(objective, batch, pixels)
        losses["blank"][indices] = answer_losses(objective, batch, torch.full_like(pixels, GRAY))
        if other_rows is not None:
            losses["shuffled"][indices] = answer_losses(
                objective, batch, squares(collator.pictures(other_rows[indices]))
            )
    lines = questions.with_columns(answer=pl.Series(answers, dtype=pl.String)).with_columns(
        correct=pl.struct("answer", "expected").map_elements(_correct, return_dtype=pl.Boolean)
    )
    metrics = {
        **score_answers(lines, photos.questions("train"), config.seed),
        **score_losses(losses, rows, config.seed),
    }
    metrics = {"sees": sees(metrics), **metrics} if other_rows is not None else metrics
    metrics |= {"seeds": 1, "command": command("answer", model=model, data=data, out=out)}
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
def answer_losses(objective: Connector, batch: dict[str, Tensor], pixels: Tensor) -> np.ndarray:
    """Returns the loss of each answer, float64 [questions]. batch: of Collator; pixels: uint8 [rows, 3, S, S]."""
    inputs = {name: value.to(objective.mean.device) for name, value in {**batch, "pixels": pixels}.items()}
    return objective.losses(inputs).double().cpu().numpy()


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
            print("answer: {:12} {value:.3f} ({low:.3f} to {high:.3f})".format(name, **value))
        elif not isinstance(value, dict):
            print(f"answer: {name:12} {value}")


if __name__ == "__main__":
    main()
