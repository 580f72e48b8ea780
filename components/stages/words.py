"""Stage: puts photos and texts into one space of vectors, by captions and class names, for search by words."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from components.config import Seed, Strict, read_section, write_config
from components.connector.dual_encoder import Batch, DualEncoder, as_stock, pooling_problem, stock_tower
from components.connector.llm import load_llm, model_digests
from components.connector.text_encoder import build_encoder, text_tokenizer, tokenize, word_vectors
from components.data.photos import Photos
from components.data.texts import captions, class_text, training_texts
from components.evaluation.features import features
from components.evaluation.retrieval import retrieval
from components.evaluation.scoring import cannot_score
from components.evaluation.statistics import proportion_with_ci
from components.machine import keep_memory, make_readable
from components.models.backbone import Backbone, load
from components.source_files import digest
from components.stages.exit_code import backbone_parser, command, exit_code
from components.stages.scratch import clear, exclusive, scratch
from components.training import optim
from components.training.loop import accelerator, fit
from components.training.monitor import Run

MOST_RETRIEVED = 5000  # test photos among which captions are searched
REFERENCE_BATCH = 256  # optim.build scales rates from it; passed as the batch size, it leaves lr as configured
TEXTS_AT_ONCE = 512  # encoded together when scores are measured; test photos may have tens of thousands of texts
SHOWN, NEAREST = 6, 8  # captions on the report's page, and the photos found by each


class WordsConfig(Strict):
    """The text encoder is small, as it learns from captions of a few thousand photos. lr is for every batch size."""

    method: str  # whose backbone; dvc.yaml reads it
    llm: str = "smollm2"  # whose tokenizer and word vectors are used
    steps: int = Field(200, ge=1)
    batch_size: int = Field(256, ge=2)
    class_names: bool = True  # learn the names of labeled photos' classes too; false: captions only
    dim: int = Field(128, ge=4)  # of the vectors; the text encoder is at most as wide
    depth: int = Field(1, ge=1)  # blocks of the text encoder
    optimizer: optim.Optimizer = optim.AdamW(lr=3e-3, weight_decay=1e-2, clip=1.0, schedule=optim.Cosine(warmup=0.1))
    seed: Seed = 0


def words(config: WordsConfig, folder: Path, data: Path, out: Path) -> dict[str, Any]:
    """Trains a dual encoder on the frozen backbone in `folder`. Returns the metrics.

    Writes the stock model to out/model, the vectors of all photos to photos.safetensors, metrics.json, log.jsonl and
    config.json. A backbone that no stock class holds, or photos without texts, give none: then metrics.json says why.
    """
    photos, backbone = Photos(data), load(folder / "backbone")
    texts = training_texts(photos, class_names=config.class_names)
    reason = pooling_problem(backbone) or _texts_problem(texts)
    out.mkdir(parents=True, exist_ok=True)
    write_config(config, out / "config.json")
    metrics: dict[str, Any] = {"skipped": f"no words: {reason}"}
    if not reason:
        metrics = _train(config, folder, backbone, photos, texts, out)
        metrics |= {"seeds": 1, "command": command("words", backbone=folder, data=data, out=out)}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def _texts_problem(texts: dict[int, list[str]]) -> str | None:
    """Returns why nothing can be learned from these texts of the training photos, None if something can."""
    if not texts:
        return "the training photos have no captions or labels"
    if len(texts) < 2:
        return "only one training photo has a caption or a label"
    if len({text for lines in texts.values() for text in lines}) < 2:
        return "all training photos have one text"
    return None


def _train(
    config: WordsConfig, folder: Path, backbone: Backbone, photos: Photos, texts: dict[int, list[str]], out: Path
) -> dict[str, Any]:
    acc = accelerator()
    backbone.patches = 0  # the stock class sees whole photos
    llm, tokenizer = load_llm(config.llm)
    tokenizer, vectors = text_tokenizer(tokenizer), word_vectors(llm, config.dim)
    del llm
    all_features = features(backbone, photos)
    load_batch = loader(config, all_features, texts, tokenizer)
    torch.manual_seed(config.seed)
    text_model, bank = build_encoder(tokenizer, vectors, config.depth), all_features[list(texts)]
    encoder = DualEncoder(bank, text_model, config.dim, matching=load_batch(0)[2].float().mean().item())
    size = min(config.batch_size, len(texts))
    optimizer = optim.build(encoder, config.optimizer, REFERENCE_BATCH)
    files = [photos.folder / name for name in ("manifest.parquet", "questions.parquet")]
    inputs = [digest(file) for file in (*files, folder / "backbone" / "model.safetensors")]
    state = scratch("words", config.model_dump(mode="json"), *inputs, model_digests(config.llm))
    run = Run("words", config.steps, size, state / "log.jsonl", state, config.seed, micro_batches=1)

    def encode(lines: list[str]) -> Tensor:
        parts = [lines[start : start + TEXTS_AT_ONCE] for start in range(0, len(lines), TEXTS_AT_ONCE)]
        return torch.cat([encoder.texts(tokenize(tokenizer, part)) for part in parts])

    with exclusive(state, acc):
        fit(encoder, load_batch, optimizer, config.optimizer, run, acc)
        encoder.cpu().eval()
        with torch.no_grad():
            vectors = encoder.photos(all_features)
        metrics: dict[str, Any] = {
            "photos": len(texts),
            "texts": len({text for lines in texts.values() for text in lines}),
        }
        metrics["manifest"] = inputs[0]  # of the photos that photos.safetensors holds
        metrics |= score(config, photos, vectors, encode)
        backbone.cpu().save(out / "model")  # for the preprocessor and the origin; the weights are replaced next
        as_stock(encoder, stock_tower(backbone, folder / "backbone")).save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        make_readable(out / "model")
        save_file({"photos": vectors}, out / "photos.safetensors")
        make_readable(out)
        (out / "log.jsonl").write_bytes(run.log.read_bytes())
        clear(state)
    return metrics


def loader(
    config: WordsConfig, all_features: Tensor, texts: dict[int, list[str]], tokenizer: Any
) -> Callable[[int], Batch]:
    """Returns a function from step to batch; it depends on seed and step only.

    One text of each photo is drawn; a photo matches every text of the batch that is one of its texts.
    """
    rows, size = np.array(list(texts)), min(config.batch_size, len(texts))
    texts_of, per_epoch = {row: set(lines) for row, lines in texts.items()}, len(texts) // size

    @cache
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((config.seed, epoch)).permutation(rows)

    def load_batch(step: int) -> Batch:
        epoch, index = divmod(step, per_epoch)
        batch_rows = order(epoch)[index * size : (index + 1) * size]
        draws = np.random.default_rng((config.seed, epoch, index)).random(size)
        batch_texts = {
            texts[row][int(draw * len(texts[row]))] for row, draw in zip(batch_rows.tolist(), draws, strict=True)
        }
        lines = sorted(batch_texts)
        matches = torch.tensor([[line in texts_of[row] for line in lines] for row in batch_rows.tolist()])
        return all_features[batch_rows], tokenize(tokenizer, lines), matches

    return load_batch


@torch.no_grad()
def score(
    config: WordsConfig, photos: Photos, vectors: Tensor, encode: Callable[[list[str]], Tensor]
) -> dict[str, Any]:
    """Returns the accuracy of naming the class of test photos, and recalls of captions, or why they are not measured.

    Under "found" are some captions, each with the rows of the test photos that it finds, best first.

    vectors: of all photos [N, D]. encode: texts -> vectors [T, D].
    """
    metrics: dict[str, Any] = {}
    if reason := cannot_score(photos):
        metrics["not_measured"] = {"zero_shot": reason}
    else:
        train, test = (photos.labels(photos.rows(split, labeled=True)) for split in ("train", "test"))
        names = encode([class_text(name) for name in photos.classes])
        predicted = (vectors[photos.rows("test", labeled=True)] @ names.T).argmax(1)
        metrics["zero_shot"] = {
            "top1": proportion_with_ci(int((predicted == test).sum()), len(test)),
            "majority": proportion_with_ci(int((test == train.mode().values).sum()), len(test)),
            "chance": 1 / len(photos.classes),
            "names": "learned with the training photos" if config.class_names else "not learned",
        }
    captions_of = captions(photos, "test")
    rows = np.random.default_rng(config.seed).permutation(np.array(sorted(captions_of), dtype=np.int64))[
        :MOST_RETRIEVED
    ]
    lines = sorted({line for row in rows.tolist() for line in captions_of[row]})
    if len(rows) < 2 or len(lines) < 2:
        metrics.setdefault("not_measured", {})["retrieval"] = "fewer than two test photos have captions that differ"
        return metrics
    column_of = {line: column for column, line in enumerate(lines)}
    matches = torch.zeros(len(rows), len(lines), dtype=torch.bool)
    for index, row in enumerate(rows.tolist()):
        matches[index, [column_of[line] for line in captions_of[row]]] = True
    similarity = vectors[rows] @ encode(lines).T  # [photos, texts]
    best = similarity.topk(min(NEAREST, len(rows)), dim=0).indices
    samples = np.random.default_rng(config.seed).permutation(len(lines))[:SHOWN].tolist()
    metrics["found"] = [{"text": lines[column], "rows": rows[best[:, column].numpy()].tolist()} for column in samples]
    return {**metrics, "retrieval": retrieval(similarity, matches, config.seed)}


def main() -> None:
    parser = backbone_parser(__doc__)
    args = parser.parse_args()
    keep_memory()
    with exit_code("words", parser):
        metrics = words(read_section("words", WordsConfig), args.backbone, args.data, args.out)
    if "skipped" in metrics:
        print(f"words: {metrics['skipped']}")
        return
    for name in ("majority", "top1") if "zero_shot" in metrics else ():
        print("words: {:8} {value:.3f} ({low:.3f} to {high:.3f}) of {of}".format(name, **metrics["zero_shot"][name]))
    for name in ("photo_to_text", "text_to_photo") if "retrieval" in metrics else ():
        for k, recall in metrics["retrieval"][name].items():
            print(f"words: {name} recall@{k}: {recall['value']:.3f}, chance {recall['chance']:.3f}")
    for name, reason in metrics.get("not_measured", {}).items():
        print(f"words: not measured: {name}: {reason}")


if __name__ == "__main__":
    main()
