"""What the trained models of a project say about one photo. Each model is read from disk when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from components.adapters.saved import SavedClassifier, check_key, load_classifier
from components.commands import ask
from components.commands.one_photo import prepare_settings, read_photo
from components.commands.search import Folders, TextSearch, paths
from components.connector.answering import generate_answers, load_vlm
from components.data.photos import Photos, as_square
from components.evaluation.attention import attention_maps
from components.evaluation.embeddings import Embeddings
from components.evaluation.index import Index
from components.models.backbone import Backbone, load
from components.reporting.figures import data_uri
from components.stages.prepare import ResolvedConfig


@dataclass(frozen=True)
class Similar:
    """A photo of the project. image: a data URI; path: of its file; label: None if it has none."""

    image: str
    path: str
    label: str | None
    cosine: float


class PhotoUses:
    """Raises ValueError, with the command that helps, where the stage that makes a model has not run."""

    def __init__(self, folders: Folders, adapter: Path, model: Path) -> None:
        """adapter, model: the folders that adapt and connect write."""
        self.folders, self._adapter, self._model = folders, adapter, model
        self.photos = Photos(folders.data)

    @cached_property
    def _settings(self) -> ResolvedConfig:
        return prepare_settings(self.folders.data, 0)

    @cached_property
    def _backbone(self) -> Backbone:
        return load(self.folders.backbone / "backbone").eval()

    @cached_property
    def _vectors(self) -> Index | Embeddings:
        embeddings = Embeddings.read(self.folders.embed)
        embeddings.check(self.folders.backbone / "backbone", self.photos.manifest)
        return Index.read(embeddings) or embeddings

    @cached_property
    def _texts(self) -> TextSearch:
        return TextSearch(self.folders)

    @cached_property
    def _classifier(self) -> SavedClassifier:
        check_key(self._adapter, None)
        return load_classifier(self._adapter / "model")

    @cached_property
    def _vlm(self) -> tuple[Any, Any]:
        folder, _ = ask.folders(self._model, self.folders.data)
        return load_vlm(folder)

    def open(self, content: bytes, name: str) -> Image.Image:
        """Returns the photo as prepare packs it. Raises ValueError, in one sentence, if it cannot be used."""
        return read_photo(content, name, self._settings)

    def _square(self, photo: Image.Image) -> Tensor:
        return as_square(photo, self._backbone.config.image_size, self._backbone.config.square)

    @torch.no_grad()
    def similar(self, photo: Image.Image, k: int) -> list[Similar]:
        """Returns the `k` photos of the project that look most like it, best first."""
        vectors = self._vectors  # read before the backbone, so that missing vectors are what the error names
        cosines, rows = vectors.nearest(self._backbone(self._square(photo)[None]), k)
        return self._to_similar(rows[0].tolist(), cosines[0].tolist())

    def by_text(self, text: str, k: int) -> list[Similar]:
        """Returns the `k` photos of the project that fit the text best."""
        result = self._texts.search(text, k)
        return self._to_similar(result.rows, result.cosines)

    def _to_similar(self, rows: list[int], cosines: list[float]) -> list[Similar]:
        files = paths(self.folders.data, rows)
        return [
            Similar(data_uri(self.photos[row]), file, self.photos.label(row), cosine)
            for row, file, cosine in zip(rows, files, cosines, strict=True)
        ]

    def classes(self, photo: Image.Image, k: int) -> list[tuple[str, float]]:
        """Returns the `k` most probable classes with their probabilities, best first.

        Where photos have several labels, all with a probability above 0.5, at least one.
        """
        classifier = self._classifier
        square = as_square(photo, classifier.size, classifier.square)[None]
        return classifier.likely(square, None if classifier.multi_label else k)[0]

    def attention(self, photo: Image.Image) -> tuple[str, str]:
        """Returns the photo, dark where the backbone looks least, as a data URI, and what its brightness is."""
        square = self._square(photo)
        maps, kind = attention_maps(self._backbone, square[None])
        light = interpolate(maps[None], square.shape[-2:], mode="bilinear", align_corners=False)[0]
        return data_uri((square * (0.15 + 0.85 * light)).to(torch.uint8)), kind

    def answer(self, photo: Image.Image, question: str) -> str:
        """Returns the language model's answer to a question about the photo. Raises ValueError for an empty one."""
        if not question.strip():
            raise ValueError("the question is empty; try: What is in the picture?")
        model, processor = self._vlm
        return generate_answers(model, processor, [photo], [question], model.generation_config.max_new_tokens)[0]
