"""Stage: connects a backbone to a language model, into a model that answers questions about photos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from components.config import Seed, Strict, read_section, write_config
from components.connector.collate import Collator, Squares, epoch_batches, squares_for
from components.connector.llm import load_llm, model_digests
from components.connector.objective import Connector
from components.connector.scoring import derangement
from components.connector.towers import square_size, tower_problem
from components.connector.trained import RATES, Trained, unfreeze
from components.connector.vlm import assemble
from components.connector.warm_start import warm_start
from components.data.photos import Photos
from components.machine import keep_memory, make_readable
from components.source_files import digest
from components.stages.exit_code import backbone_parser, exit_code
from components.stages.scratch import clear, exclusive, scratch
from components.training import distributed, optim
from components.training.loop import accelerator, fit
from components.training.lora import LoRA, merge
from components.training.monitor import Run

REFERENCE_BATCH = 256  # optim.build scales rates from it; passed as the batch size, it leaves lr as configured
LOSS_LINES = 5  # last lines of the log whose mean is the final training loss
WARM_START_PHOTOS = 1024
VALIDATION_QUESTIONS = 32


class ConnectConfig(Strict):
    """The tower stays frozen; the projector is trained, and of the language model nothing, LoRA's updates, or all.

    optimizer.lr is the projector's rate, three times LLaVA's (1e-3, https://arxiv.org/abs/2310.03744), and does not
    depend on the batch size; a projector that is trained alone learns more at 1e-2. llm_lr is the rate of the language
    model's weights; None: the one in RATES.
    """

    method: str  # whose backbone; dvc.yaml reads it
    llm: str = "smollm2"
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seed: Seed = 0
    image_size: int | None = Field(None, ge=32)  # pixels of the squares that a CNN sees; None: `square_size`
    answer_tokens: int = Field(64, ge=2)  # longer answers are cut
    trained: Trained = "lora"
    lora: LoRA = LoRA()
    llm_lr: float | None = Field(None, gt=0)
    optimizer: optim.AdamW = optim.AdamW(lr=3e-3, clip=1.0, schedule=optim.Cosine(warmup=0.2))


def connect(config: ConnectConfig, backbone: Path, data: Path, out: Path) -> dict[str, Any]:
    """Trains on the questions of the train split, writes the stock model to out/model; returns metrics.

    A backbone that no stock class holds, or photos without questions, give no model: then metrics.json says why.
    """
    reason = tower_problem(backbone / "backbone")
    photos = Photos(data)
    questions = photos.questions("train")
    if reason is None and not len(questions):
        reason = "there are no questions, labels or captions to learn from"
    if reason:
        return _write(config, out, {"skipped": reason})
    acc = accelerator()
    if config.batch_size % acc.num_processes:
        raise ValueError(f"batch_size {config.batch_size} is not a multiple of the {acc.num_processes} processes")
    if len(questions) < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is larger than the {len(questions)} training questions")
    size = config.image_size or square_size(backbone / "backbone")
    vlm, processor = assemble(backbone / "backbone", *load_llm(config.llm), config.seed, size)
    adapter = unfreeze(vlm, config.trained, config.lora, config.seed)
    objective = Connector(vlm.to(acc.device), processor)
    collator = Collator(processor, config.answer_tokens)
    squares = squares_for(processor, photos)
    load = loader(squares, questions, collator, config, (acc.process_index, acc.num_processes))
    warm_start(vlm, warm_start_batches(objective, squares, questions, collator))
    optimizer = optim.build(objective, config.optimizer, REFERENCE_BATCH, llm_factors(objective, config))
    files = [data / "manifest.parquet", data / "questions.parquet", backbone / "backbone" / "model.safetensors"]
    inputs = (*[digest(file) for file in files], model_digests(config.llm))
    state = scratch("connect", config.model_dump(mode="json"), *inputs)
    run = Run("connect", config.steps, config.batch_size, state / "log.jsonl", state, config.seed)
    metrics: dict[str, Any] = {}
    with exclusive(state, acc):
        fit(objective, load, optimizer, config.optimizer, run, acc)
        if acc.is_main_process:
            log = run.log.read_text(encoding="utf-8")
            losses = [json.loads(line)["loss"] for line in log.splitlines()[-LOSS_LINES:]]
            merge(adapter)
            metrics = {"loss": float(np.mean(losses)), **validation_gap(objective, photos, collator, squares)}
            vlm.save_pretrained(out / "model")
            make_readable(out / "model")
            processor.save_pretrained(out / "model")
            (out / "log.jsonl").write_text(log, encoding="utf-8")
            _write(config, out, metrics)
            clear(state)
    acc.end_training()
    return metrics


def llm_factors(objective: Connector, config: ConnectConfig) -> dict[str, float]:
    """Returns the rate of each trained weight of the language model, as a factor of the projector's."""
    rate = RATES[config.trained] if config.llm_lr is None else config.llm_lr
    return {f"llm.{name}": rate / config.optimizer.lr for name in objective.llm}


def warm_start_batches(
    objective: Connector, squares: Squares, questions: Any, collator: Collator
) -> Iterator[tuple[Tensor, list[list[int]]]]:
    """Yields normalized pixels of some training photos, and for each of them the tokens of all its answers."""
    tokens: dict[int, list[int]] = {}
    for row, answer in questions.select("row", "answer").iter_rows():
        if row in tokens or len(tokens) < WARM_START_PHOTOS:
            tokens.setdefault(row, []).extend(collator.suffix(answer)[:-1])
    rows = np.array([row for row, ids in tokens.items() if ids])
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        pixels = squares(part).to(objective.mean.device)
        yield (pixels - objective.mean) / objective.std, [tokens[row] for row in part.tolist()]


def loader(
    squares: Squares, questions: Any, collator: Collator, config: ConnectConfig, rank_and_size: tuple[int, int]
) -> Callable[[int], dict[str, Tensor]]:
    """Returns a function from step to the batch of this process; it depends on seed and step only.

    A question's weight is the length of its answer, so that the loss is the mean over all tokens of the whole batch,
    in several processes and micro-batches too. Micro-batches need rows of one question. rank_and_size: the number of
    this process, and how many there are.
    """
    rows, texts, answers = (questions[name].to_numpy() for name in ("row", "question", "answer"))
    lengths = collator.lengths(texts.tolist(), answers.tolist())
    tokens = collator.answer_lengths(answers.tolist())
    groups = rows if collator.packs else np.arange(len(rows))
    packs = collator.packs and distributed.micro_batches() == 1
    per_epoch, (rank, world_size) = len(questions) // config.batch_size, rank_and_size

    @cache
    def epoch(number: int) -> np.ndarray:
        return epoch_batches(lengths, groups, config.batch_size, config.seed, number)

    def load(step: int) -> dict[str, Tensor]:
        batch_indices = epoch(step // per_epoch)[step % per_epoch]
        indices = np.array_split(batch_indices, world_size)[rank]
        batch = collator(texts[indices].tolist(), answers[indices].tolist(), rows[indices] if packs else None)
        weight = torch.from_numpy(tokens[indices] / tokens[batch_indices].mean()).float()
        pictures = collator.pictures(rows[indices]) if packs else rows[indices]
        return {**batch, "weight": weight, "pixels": squares(pictures)}

    return load


@torch.no_grad()
def validation_gap(
    objective: Connector, photos: Photos, collator: Collator, squares: Squares
) -> dict[str, float | None]:
    """Returns val_loss, on some val questions, and val_gap, by how much it rises with another photo's pixels.

    A model that ignores the image has a gap of zero. Both are None if there are fewer than two photos. As in training
    they are means over all tokens of the answers.
    """
    questions = photos.questions("val")
    questions = questions.sample(min(VALIDATION_QUESTIONS, len(questions)), seed=0, shuffle=True)
    if questions["row"].n_unique() < 2:
        return {"val_loss": None, "val_gap": None}
    other_images = derangement(questions["row"].to_numpy(), seed=0)
    objective.eval()
    sums, total = np.zeros(2), 0
    for part, other_rows in zip(
        questions.iter_slices(16), np.array_split(other_images, range(16, len(other_images), 16)), strict=True
    ):
        batch = collator(part["question"], part["answer"])
        tokens = collator.answer_lengths(part["answer"].to_list())
        total += int(tokens.sum())
        for index, rows in enumerate((part["row"].to_numpy(), other_rows)):
            inputs = {**batch, "pixels": squares(rows)}
            inputs = {name: value.to(objective.mean.device) for name, value in inputs.items()}
            sums[index] += (objective.losses(inputs).cpu() * torch.from_numpy(tokens)).sum().item()
    loss, shuffled_loss = sums / total
    return {"val_loss": float(loss), "val_gap": float(shuffled_loss - loss)}


def _write(config: ConnectConfig, out: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    write_config(config, out / "config.json")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def main() -> None:
    parser = backbone_parser(__doc__)
    args = parser.parse_args()
    keep_memory()
    with exit_code("connect", parser):
        config = read_section("connect", ConnectConfig)
        distributed.relaunch("components.stages.connect")
        metrics = connect(config, args.backbone, args.data, args.out)
    if metrics:  # only the first process has them
        words = {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in metrics.items()}
        print("connect: " + ", ".join(f"{name}: {value}" for name, value in words.items()))


if __name__ == "__main__":
    main()
