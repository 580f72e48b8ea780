"""Print the photos most similar to a photo (by the stage `embed`), or those that fit a text (by `words`)."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, VisionTextDualEncoderModel

from components.commands import cli
from components.commands.one_photo import open_photo, photo_files, prepare_settings
from components.connector.text_encoder import tokenize
from components.data.photos import Photos, as_square
from components.data.sources import source_folder
from components.evaluation.embeddings import Embeddings
from components.evaluation.index import Index, about, describe
from components.evaluation.knn import nearest
from components.models.backbone import load
from components.reporting.found import Found, page
from components.source_files import digest
from components.stages.exit_code import exit_code


@dataclass(frozen=True)
class Folders:
    """backbone: written by pretrain; data: by prepare; embed, words: by the stages of these names."""

    backbone: Path
    data: Path
    embed: Path
    words: Path


class TextSearch:
    """Finds the photos that fit a text. What the stage words wrote is read once.

    Raises ValueError if words has not run, was skipped, or ran on other photos.
    """

    def __init__(self, folders: Folders) -> None:
        file = folders.words / "metrics.json"
        if not file.is_file():
            raise ValueError(f"{file} is missing: the stage words has not run; run: dvc repro words")
        metrics, photos = json.loads(file.read_text(encoding="utf-8")), Photos(folders.data)
        if "skipped" in metrics:
            raise ValueError(f"{folders.words} has no vectors to search: {metrics['skipped']}")
        if metrics["manifest"] != digest(photos.folder / "manifest.parquet"):
            raise ValueError(f"{folders.words} is not from the photos in {folders.data}; run: dvc repro words")
        self._tokenizer = AutoTokenizer.from_pretrained(folders.words / "model")
        self._model = VisionTextDualEncoderModel.from_pretrained(folders.words / "model").eval()
        self._vectors = load_file(folders.words / "photos.safetensors")["photos"]

    @torch.no_grad()
    def search(self, text: str, k: int) -> Found:
        """Returns the `k` photos whose vectors are nearest to that of the text. Raises ValueError if it is empty."""
        if not text.strip():
            raise ValueError(f'--text is {text!r}; a few words are needed, such as "two red cars"')
        query = self._model.get_text_features(**tokenize(self._tokenizer, [text])).pooler_output
        similarity, rows = nearest(query, self._vectors, min(k, len(self._vectors)))
        return Found(text, None, rows[0].tolist(), similarity[0].tolist())


def by_photos(files: Sequence[Path], k: int, folders: Folders, *, exact: bool = False) -> list[Found]:
    """Returns for each photo the `k` photos that look most like it. Files that are no photos are named and left out.

    Uses the index that embed wrote, if there is one, and says so; with `exact` all vectors are compared.

    A photo is opened as prepare does it, so that one of its own photos finds itself with a cosine of 1.
    Raises ValueError if embed has not run, or ran on another backbone or other photos, or if no file can be used.
    """
    embeddings, photos = Embeddings.read(folders.embed), Photos(folders.data)
    embeddings.check(folders.backbone / "backbone", photos.manifest)
    settings, backbone = prepare_settings(folders.data, 0), load(folders.backbone / "backbone").eval()
    squares: dict[Path, Tensor] = {}
    for file in files:
        try:
            photo = open_photo(file, settings)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            squares[file] = as_square(photo, backbone.config.image_size, backbone.config.square)
    if not squares:
        raise ValueError("no photo to search by; give a file, or a folder of photos")
    with torch.no_grad():
        queries = torch.cat([backbone(torch.stack(part)) for part in _parts(list(squares.values()))])
    index = None if exact else Index.read(embeddings)
    if index:
        print(f"search: {describe(about(folders.embed))}; --exact compares with all", file=sys.stderr)
    similarity, rows = (index or embeddings).nearest(queries, k)
    return [
        Found(str(file), square, photo_rows.tolist(), cosines.tolist())
        for (file, square), photo_rows, cosines in zip(squares.items(), rows, similarity, strict=True)
    ]


def paths(data: Path, rows: list[int]) -> list[str]:
    """Returns the paths of photos; with the folder that prepare read, if it read one that still exists."""
    file = data / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    try:
        folder = source_folder(config.get("data", {}).get("source", ""))
    except ValueError:  # it is gone
        folder = None
    names = Photos(data).manifest["path"]
    return [str(folder / names[row]) if folder else names[row] for row in rows]


def _parts(squares: list[Tensor], size: int = 64) -> list[list[Tensor]]:
    return [squares[start : start + size] for start in range(0, len(squares), size)]


def main() -> None:
    parser = ArgumentParser(prog="selfsight search", description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", help="photos, or folders of photos, to find similar ones to")
    parser.add_argument("--text", help='what the photos show, such as "two red cars"')
    parser.add_argument("--k", type=int, default=20, help="how many photos (default: 20)")
    parser.add_argument("--exact", action="store_true", help="compare with all photos, even if embed wrote an index")
    parser.add_argument("--page", type=Path, help="also write a page with the photos that were found")
    args = parser.parse_args()
    with exit_code("search", parser):
        if bool(args.photos) == (args.text is not None):
            raise ValueError('give photos, or --text "WORDS", and not both')
        if args.k < 1:
            raise ValueError(f"--k is {args.k}; allowed: 1 or more")
        stage_folders = cli.folders("embed")
        folders = Folders(
            stage_folders["backbone"], stage_folders["data"], stage_folders["out"], cli.folders("words")["out"]
        )
        photo_results = args.photos and by_photos(photo_files(args.photos), args.k, folders, exact=args.exact)
        results = photo_results or [TextSearch(folders).search(args.text, args.k)]
        for result in results:
            if len(results) > 1:
                print(result.query)
            for path, cosine in zip(paths(folders.data, result.rows), result.cosines, strict=True):
                print(f"{cosine:.3f}  {path}")
        if args.page:
            args.page.write_text(page(results, Photos(folders.data)), encoding="utf-8")
            print(f"page: {args.page}", file=sys.stderr)


if __name__ == "__main__":
    main()
