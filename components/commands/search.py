"""Print the photos that fit a text best, by the vectors of the stage `words`."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoTokenizer, VisionTextDualEncoderModel

from components.commands.cli import stages
from components.connector.text_encoder import tokenize
from components.data.photos import Photos
from components.data.sources import source_folder
from components.evaluation.knn import nearest
from components.source_files import digest
from components.stages.exit_code import exit_code

FOLDERS = {"words": "words", "data": "prepare"}  # argument -> the stage that writes it


def search(text: str, k: int, words: Path, data: Path) -> list[tuple[str, float]]:
    """Returns the paths of the `k` photos whose vectors are nearest to that of the text, with the cosines, best first.

    words, data: folders that the stages words and prepare wrote. A path is in the folder of photos, where that is one.
    Raises ValueError if prepare or words has not run, or if words was skipped or ran on other photos.
    """
    if not text.strip():
        raise ValueError(f'--text is {text!r}; a few words are needed, such as "two red cars"')
    if k < 1:
        raise ValueError(f"--k is {k}; allowed: 1 or more")
    file = words / "metrics.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing: the stage words has not run; run: dvc repro words")
    metrics = json.loads(file.read_text(encoding="utf-8"))
    if "skipped" in metrics:
        raise ValueError(f"{words} has no vectors to search: {metrics['skipped']}")
    photos = Photos(data)
    if metrics["manifest"] != digest(data / "manifest.parquet"):
        raise ValueError(f"{words} was computed from other photos than {data} holds; run: dvc repro words")
    tokenizer = AutoTokenizer.from_pretrained(words / "model")
    model = VisionTextDualEncoderModel.from_pretrained(words / "model").eval().requires_grad_(requires_grad=False)
    query = model.get_text_features(**tokenize(tokenizer, [text])).pooler_output
    vectors = load_file(words / "photos.safetensors")["photos"]
    similarity, rows = nearest(query, vectors, min(k, len(vectors)))
    paths, source = photos.manifest["path"], _source(data)
    return [
        (str(source / paths[row]) if source else paths[row], cosine)
        for row, cosine in zip(rows[0].tolist(), similarity[0].tolist(), strict=True)
    ]


def _source(data: Path) -> Path | None:
    """Returns the folder of photos that prepare read.

    None if they were generated, if they come from a data set of torchvision, or if the folder is gone.
    """
    file = data / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    try:
        return source_folder(config.get("data", {}).get("source", ""))
    except ValueError:
        return None


def main() -> None:
    parser = ArgumentParser(prog="selfsight search", description=__doc__)
    parser.add_argument("--text", required=True, help='what the photos show, such as "two red cars"')
    parser.add_argument("--k", type=int, default=20, help="how many photos (default: 20)")
    parser.add_argument("--words", type=Path, help="folder written by words (default: that of dvc.yaml)")
    parser.add_argument("--data", type=Path, help="folder written by prepare (default: that of dvc.yaml)")
    args = parser.parse_args()
    with exit_code("search", parser):
        given = {name: getattr(args, name) or Path(stages()[stage]["outs"][0]) for name, stage in FOLDERS.items()}
        for path, cosine in search(args.text, args.k, **given):
            print(f"{cosine:.3f}  {path}")


if __name__ == "__main__":
    main()
