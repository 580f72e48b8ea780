"""Opens one photo file with the pixels that the models of this project saw in training."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from components.config import parse
from components.data import images
from components.data.images import Rejected
from components.data.photos import jpeg
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig


def prepare_settings(data: Path | None, size: int) -> ResolvedConfig:
    """Returns the settings with which prepare wrote the folder `data`.

    Without such a folder they are the defaults, with photos reduced to `size` pixels on the shorter side.
    """
    file = data / "config.json" if data else None
    if file and file.is_file():
        return parse(ResolvedConfig, json.loads(file.read_text(encoding="utf-8")), str(file))
    return ResolvedConfig(data=DataConfig(source="", size=size), prepare=PrepareConfig())


def open_photo(file: Path, settings: ResolvedConfig) -> Image.Image:
    """Returns the photo as `read_photo` does. Raises ValueError, in one sentence, if it cannot be used."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    return read_photo(content, str(file), settings)


def read_photo(content: bytes, name: str, settings: ResolvedConfig) -> Image.Image:
    """Returns the photo as prepare packs it: upright, RGB, the shorter side reduced to data.size.

    content: the bytes of its file. Raises ValueError, in one sentence that begins with `name`, if it cannot be used.
    """
    rules, quality = settings.prepare.rules(), settings.data.jpeg_quality
    with images.pillow_limit(rules.max_pixels):
        photo = images.reject_errors(lambda: images.read(content, settings.data.size, rules))
    if isinstance(photo, Rejected):
        raise ValueError(f"{name}: {photo}")
    if quality is None:
        return Image.fromarray(photo.pixels)
    return Image.open(io.BytesIO(jpeg(photo.pixels, quality))).convert("RGB")  # lossy, as it was for training


def photo_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the files, and those in the folders. Raises ValueError for what does not exist."""
    if missing := [str(path) for path in paths if not path.exists()]:
        raise ValueError(f"there is no file or folder {', '.join(missing)}")
    return [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
