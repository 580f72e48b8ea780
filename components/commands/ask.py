"""Ask the language model about one photo.

Without a question it reads questions from the terminal, or one a line from a pipe, until an empty line or Ctrl-C. The
model was trained on single questions, so each one is asked alone: an answer does not depend on the questions before it.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.commands import cli

LISTED = 8  # training questions
INTERRUPTED = 130  # the exit code of a shell for Ctrl-C


def folders(model: Path | None, data: Path | None) -> tuple[Path, Path | None]:
    """Returns the folder of the model and the one that prepare wrote; without `model` those of dvc.yaml.

    The data in dvc.yaml need not be those of another model, so with `model` they are None unless given.
    Raises ValueError if there is no model, with the command that makes it.
    """
    if model is None:
        stage_folders = cli.folders("answer")
        model, data = stage_folders["model"], data or stage_folders["data"]
    skipped = model / "metrics.json"  # of connect
    if skipped.is_file() and (why := json.loads(skipped.read_text(encoding="utf-8")).get("skipped")):
        raise ValueError(f"{model} holds no model: {why}")
    model = model / "model" if (model / "model").is_dir() else model
    if not (model / "config.json").is_file():
        raise ValueError(f"{model} holds no model; this makes one: dvc repro connect")
    return model, data


def frequent_questions(data: Path | None, count: int = LISTED) -> list[str]:
    """Returns the most frequent questions about training photos, [] if prepare's folder is not there."""
    from components.data.photos import Photos

    if data is None or not (data / "questions.parquet").is_file():
        return []
    counts = Photos(data).questions("train")["question"].value_counts()
    return counts.sort(["count", "question"], descending=[True, False])["question"].head(count).to_list()


def answer(model: Any, processor: Any, image: Any, question: str) -> str:
    """Prints the answer word by word as it is generated, and returns it."""
    from components.connector.answering import AnswerPrinter, generate_answers

    length, printer = model.generation_config.max_new_tokens, AnswerPrinter(processor.tokenizer)
    return generate_answers(model, processor, [image], [question], length, printer)[0]


def questions() -> Iterator[str]:
    """Yields lines of standard input until an empty one or its end."""
    while True:
        if sys.stdin.isatty():
            print("question: ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline().strip()):
            return
        yield line


def ask(photo: Path, question: str | None, model: Path | None, data: Path | None) -> None:
    """Answers one question, or those of standard input. Raises ValueError if the model or the photo cannot be used."""
    folder, data = folders(model, data)
    if not photo.is_file():  # before the seconds that the imports take
        raise ValueError(f"there is no file {photo}")
    import torch

    from components.commands.one_photo import open_photo, prepare_settings
    from components.connector.answering import load_vlm
    from components.connector.towers import image_size

    vlm, processor = load_vlm(folder)
    image = open_photo(photo, prepare_settings(data, image_size(processor.image_processor)))
    vlm.to("cuda" if torch.cuda.is_available() else "cpu")
    if question:
        answer(vlm, processor, image, question)
        return
    if examples := frequent_questions(data):
        print("It was trained on these questions, among others:", *examples, sep="\n  ", file=sys.stderr)
    print("An empty line ends.", file=sys.stderr)
    for line in questions():
        answer(vlm, processor, image, line)


def main() -> None:
    parser = ArgumentParser(prog="selfsight ask", description=__doc__)
    parser.add_argument("photo", type=Path, help="a file of any format that prepare reads")
    parser.add_argument("question", nargs="?", help="in quotes; best is one that the model was trained on")
    parser.add_argument("--model", type=Path, help="folder written by connect (default: as in dvc.yaml)")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder written by prepare, which sets the size that the photo is reduced to first, and the questions "
        "that are shown (default: as in dvc.yaml; with --model: none, so the photo goes directly to the model's size)",
    )
    args = parser.parse_args()
    try:
        ask(args.photo, args.question, args.model, args.data)
    except ValueError as error:
        parser.exit(2, f"selfsight ask: {error}\n")
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED if args.question else 0, "\n")


if __name__ == "__main__":
    main()
