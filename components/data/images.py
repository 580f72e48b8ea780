"""One picture, from a file of any kind to upright RGB pixels, or a reason in plain words why not."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)  # what Pillow's readers raise


class Rejected(Exception):  # noqa: N818 (a verdict, not a mistake)
    """A picture that cannot be used, and why: a short `kind` to count by, and the words."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True)
class Limits:
    max_pixels: int
    max_aspect: float
    min_side: int


@dataclass(frozen=True)
class Picture:
    """pixels: uint8 [h, w, 3], upright, shorter side `size` at most. width, height: of the upright original."""

    pixels: np.ndarray
    width: int
    height: int
    mode: str
    channels: int
    format: str
    bytes: int
    sha256: str  # of the file
    pixels_sha256: str  # of what is seen: the same for two files with the same picture in them
    notes: tuple[str, ...]  # what had to be done to it


def read(content: bytes | Image.Image, size: int, limits: Limits) -> Picture:
    """Decode, turn upright, convert to RGB and shrink until the shorter side is `size` (never enlarge).

    Raises Rejected.
    """
    if isinstance(content, Image.Image):
        raw, image, kind = content.tobytes(), content, "none"
    else:
        raw, image = content, _open(content)
        kind = image.format or "unknown"
    mode, channels, (width, height) = image.mode, len(image.getbands()), image.size
    _check(image, limits)
    try:
        image.draft("RGB", (2 * size, 2 * size))  # a JPEG may decode at a fraction of its size
        image.load()
        notes = _peculiarities(image)
        rgb = to_rgb(ImageOps.exif_transpose(image))
    except BROKEN as error:
        raise Rejected("broken", f"cannot be decoded: {error}") from error
    if (rgb.width < rgb.height) != (width < height):
        width, height = height, width  # EXIF turned it by a quarter
    scale = size / min(rgb.size)
    if scale < 1:
        wide, high = (max(size, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=3.0)
    pixels = np.asarray(rgb)
    seen = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return Picture(pixels, width, height, mode, channels, kind, len(raw), hashlib.sha256(raw).hexdigest(), seen, notes)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: transparency on white, 16 bits scaled to 8. Raises Rejected for float pixels."""
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise Rejected("range", f"32-bit pixels from {values.min():.0f} to {values.max():.0f}: no known range")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise Rejected("range", "float pixels: no known range; save it as 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _open(content: bytes) -> Image.Image:
    if not content:
        raise Rejected("empty", "zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked next
            return Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise Rejected("bomb", f"decompression bomb: {error}") from error
    except UnidentifiedImageError:
        if content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
            raise Rejected("format", "HEIC, which Pillow cannot read; convert it to JPEG") from None
        raise Rejected("no image", f"no known image format; it begins with {content[:12]!r}") from None
    except BROKEN as error:
        raise Rejected("broken", f"cannot be opened: {error}") from error


def _check(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise Rejected("bomb", f"{width} x {height} pixels, above prepare.max_pixels {limits.max_pixels}")
    if min(width, height) < limits.min_side:
        raise Rejected("small", f"{width} x {height} pixels, below prepare.min_side {limits.min_side}")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise Rejected("aspect", f"{width} x {height} pixels, above prepare.max_aspect {limits.max_aspect:g}")


def _peculiarities(image: Image.Image) -> tuple[str, ...]:
    orientation = image.getexif().get(0x0112, 1)
    found = {
        f"converted from {image.mode}": image.mode not in ("RGB", "L"),
        "turned upright by EXIF": orientation not in (0, 1),
        "animated: first frame taken": getattr(image, "n_frames", 1) > 1,
    }
    return tuple(note for note, true in found.items() if true)
