"""Stage: a model that sees -> its answers about pictures it has not seen, and whether it looked at them at all."""

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

from components.config import Seed, Strict, read, write
from components.connector.answering import answers, load_vlm
from components.connector.collate import Collator
from components.connector.objective import Connector
from components.connector.scoring import blind_answers, bootstrap, derangement, normalized
from components.data.entries import DESCRIBE
from components.data.photos import Photos
from components.evaluation.statistics import wilson
from components.machine import keep_memory
from components.training.loop import accelerator


class AnswerConfig(Strict):
    pictures: int = Field(ge=2)  # of the test split
    batch_size: int = Field(32, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    seed: Seed = 0


def answer(config: AnswerConfig, model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Write answers.jsonl, metrics.json and config.json to `out`; the metrics.

    Without a model (nothing to learn from) or without questions about test pictures metrics.json says so.
    """
    photos = Photos(data)
    asked = chosen(photos, config)
    before = model / "metrics.json"
    skipped = json.loads(before.read_text(encoding="utf-8")).get("skipped") if before.is_file() else None
    if not skipped and not len(asked):
        skipped = "the test pictures have no questions, labels or captions"
    if skipped:
        return _finish(config, out, [], {"skipped": skipped})
    vlm, processor = load_vlm(model / "model")
    vlm.to(accelerator().device)
    said: list[str] = []
    right, shuffled = np.empty(len(asked)), np.empty(len(asked))
    objective = Connector(vlm, processor).to(vlm.device)
    rows = asked["row"].to_numpy()
    other = derangement(rows, config.seed) if asked["row"].n_unique() > 1 else None
    for place in _batches(len(asked), config.batch_size):
        part = asked[place]
        pictures = [Image.fromarray(photos[row].permute(1, 2, 0).numpy()) for row in part["row"]]
        said += answers(vlm, processor, pictures, part["question"].to_list(), config.max_new_tokens)
        right[place] = losses(objective, photos, processor, part, rows[place])
        if other is not None:
            shuffled[place] = losses(objective, photos, processor, part, other[place])
    lines = asked.with_columns(answer=pl.Series(said, dtype=pl.String)).with_columns(
        correct=pl.struct("answer", "expected").map_elements(_correct, return_dtype=pl.Boolean)
    )
    metrics = {**exactness(lines, photos.questions("train"), config.seed), "loss_right": float(right.mean())}
    if other is not None:
        low, high = bootstrap(shuffled - right, rows, config.seed)
        gap = float((shuffled - right).mean())
        metrics |= {"loss_shuffled": float(shuffled.mean()), "gap": {"value": gap, "low": low, "high": high}}
    return _finish(config, out, lines.sort("row", maintain_order=True).to_dicts(), metrics)


def chosen(photos: Photos, config: AnswerConfig) -> pl.DataFrame:
    """row, path, label, question, expected: what is asked about some test pictures, questions of a kind together."""
    asked = photos.questions("test").rename({"answer": "expected"})
    rows = np.random.default_rng(config.seed).permutation(asked["row"].unique(maintain_order=True).to_numpy())
    told = photos.manifest.with_row_index("row").select(pl.col("row").cast(pl.Int64), "path", "label")
    kept = asked.filter(pl.col("row").is_in(rows[: config.pictures].tolist())).join(told, on="row", how="left")
    kind = pl.struct(pl.col("expected").str.len_chars() // 16, pl.col("question").str.len_chars())  # little to pad
    return kept.sort(kind, "question", "row").select("row", "path", "label", "question", "expected")


@torch.inference_mode()
def losses(objective: Connector, photos: Photos, processor: Any, asked: pl.DataFrame, rows: np.ndarray) -> np.ndarray:
    """Loss of each expected answer when the picture of `rows` is shown, float [len(asked)]."""
    vlm = objective.whole[0]
    batch = Collator(processor, 512)(asked["question"], asked["expected"])
    batch["pixels"] = photos.squares(rows, vlm.config.vision_config.image_size)
    found = objective.losses({name: value.to(vlm.device) for name, value in batch.items()})
    return found.double().cpu().numpy()


def exactness(lines: pl.DataFrame, training: pl.DataFrame, seed: int) -> dict[str, Any]:
    """Exact match over all but captions (none is the one right answer) and by question, beside a guess without eyes.

    Intervals are over pictures, for the questions of one are answered right or wrong together.
    """
    blind = blind_answers(training.select("question", "answer").iter_rows())
    pairs = lines.select("question", "expected").iter_rows()
    guesses = [normalized(blind.get(question, "")) == normalized(expected) for question, expected in pairs]
    lines = lines.with_columns(blind=pl.Series(guesses, dtype=pl.Boolean))
    short = lines.filter(pl.col("question") != DESCRIBE)
    by_question = lines.group_by("question").agg(asked=pl.len(), exact_match=pl.mean("correct"), blind=pl.mean("blind"))
    found: dict[str, Any] = {"pictures": lines["row"].n_unique(), "questions": len(lines)}
    if len(short):
        for name, kind in (("exact_match", "correct"), ("blind", "blind")):
            right = short[kind].to_numpy().astype(float)
            pictures = short["row"].to_numpy()
            low, high = bootstrap(right, pictures, seed)
            if low == high:  # all are alike, of which drawing makes certainty
                low, high = wilson(round(right.mean() * found["pictures"]), found["pictures"])
            found[name] = {"value": float(right.mean()), "low": low, "high": high, "of": len(short)}
    return {**found, "per_question": {line.pop("question"): line for line in by_question.sort("question").to_dicts()}}


def _correct(pair: dict[str, str]) -> bool:
    return normalized(pair["answer"]) == normalized(pair["expected"])


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _finish(config: AnswerConfig, out: Path, lines: list[dict[str, Any]], metrics: dict[str, Any]) -> dict[str, Any]:
    write(config, out / "config.json")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "answers.jsonl").write_text(text, encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder written by connect")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    keep_memory()
    try:
        metrics = answer(read("answer", AnswerConfig), given.model, given.data, given.out)
    except ValueError as error:
        parser.exit(2, f"answer: {error}\n")
    for name, value in metrics.items():
        if isinstance(value, dict) and "low" in value:
            print("answer: {:11} {value:.3f} ({low:.3f} to {high:.3f})".format(name, **value))
        elif not isinstance(value, dict):
            print(f"answer: {name:11} {value}")


if __name__ == "__main__":
    main()
