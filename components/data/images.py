"""Reads one photo: from a file of any kind to upright RGB pixels, or to a reason why it cannot be used."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import TypeVar

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# Not all that Pillow can open: PostScript runs a program, and others (TGA) have no signature to know them by.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "QOI")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}  # ISO/IEC 23008-12, annex B
ORIENTATION = 0x0112  # EXIF
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FILE_STEPS = ("_open", "_decode", "to_rgb")  # functions in which Pillow raises errors for damaged files
FILE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
PILLOW, OURS = Path(PIL.__file__).parent, Path(__file__).parents[1]

T = TypeVar("T")


class Rejected(Exception):  # noqa: N818 (a verdict, not a mistake)
    """A photo that cannot be used: a short `kind` to count by, and the reason in words."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True)
class Rules:
    """What an image must satisfy. bit_depth: of the values in files with 16 bits a channel."""

    max_pixels: int
    max_aspect: float
    min_side: int
    bit_depth: int = 16


@dataclass(frozen=True)
class DecodedImage:
    """pixels: uint8 [h, w, 3], upright, shorter side `size` at most. width, height: of the upright original."""

    pixels: np.ndarray
    width: int
    height: int
    mode: str
    channels: int
    format: str
    bytes: int
    sha256: str  # of the file
    pixels_sha256: str  # of the pixels: the same for two files that show the same
    notes: tuple[str, ...]  # what had to be done to it
    peak: int | None  # largest value, in files with 16 bits a channel


@contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
    """Makes `max_pixels` the size above which Pillow refuses an image or one of its frames, and silences its warnings.

    Both belong to the process, so this is entered before threads read, and left when they have ended.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow warns above this and raises above twice this
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged metadata
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def reject_errors(read: Callable[[], T]) -> T | Rejected:
    """Returns what `read` returns, or the rejection of that photo: no exception of one photo stops the others.

    FILE_ERRORS that Pillow raises in FILE_STEPS mean a damaged file, and so does any error in Pillow's reader of a
    format, which gets nothing but the file. All else may be a bug: its kind is "unexpected".
    """
    try:
        return read()
    except Rejected as rejected:
        return rejected
    except Exception as error:  # the only one: a photo must be rejected by name, whatever its file makes Pillow do
        frames = [
            (Path(frame.f_code.co_filename), frame.f_code.co_name, n) for frame, n in walk_tb(error.__traceback__)
        ]
        file, name, line = frames[-1]
        step = next(name for file, name, _ in reversed(frames) if OURS in file.parents)
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        in_heif = any(file.parent.name == "pillow_heif" for file, _, _ in frames)
        in_reader = in_heif or any(file.name.endswith("ImagePlugin.py") for file, _, _ in frames)
        in_pillow = in_heif or PILLOW in file.parents
        if step in FILE_STEPS and in_pillow and (in_reader or isinstance(error, FILE_ERRORS)):
            return Rejected("broken", f"cannot be decoded: {message}")
        return Rejected("unexpected", f"{message} (in {file.name}, line {line}, {name})")


def read(content: bytes | Image.Image, size: int, rules: Rules) -> DecodedImage:
    """Decodes, turns upright, converts to RGB and shrinks until the shorter side is `size` (never enlarges).

    Raises Rejected, and whatever Pillow raises for a damaged file: `reject_errors` turns that into a rejection.
    """
    if isinstance(content, Image.Image):
        raw, image, format_ = content.tobytes(), content, "none"
    else:
        raw, image = content, _open(content)
        format_ = image.format or "unknown"
    mode, channels, (width, height) = image.mode, len(image.getbands()), image.size
    _check(image, rules)
    rawmodes = [str(tile.args).replace("BGR;16", "") for tile in getattr(image, "tile", ())]  # a BMP of 16 bits a pixel
    is_deep = mode in SIXTEEN_BIT or any(";16" in rawmode for rawmode in rawmodes)
    orientation, notes = _decode(image, size)
    rgb = to_rgb(image, rules.bit_depth)
    peak = _peak(image, rgb, rules) if is_deep else None
    if orientation in TRANSPOSE:
        rgb = rgb.transpose(TRANSPOSE[orientation])
        width, height = (height, width) if orientation >= 5 else (width, height)
    scale = size / min(rgb.size)
    if scale < 1:
        new_width, new_height = (max(size, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((new_width, new_height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    pixels = np.asarray(rgb)
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    sha256 = hashlib.sha256(raw).hexdigest()
    return DecodedImage(pixels, width, height, mode, channels, format_, len(raw), sha256, digest, notes, peak)


def to_rgb(image: Image.Image, bit_depth: int = 16) -> Image.Image:
    """Returns RGB of any mode: transparency on white, `bit_depth` bits scaled to 8.

    Raises Rejected for float pixels and for values above the range of `bit_depth`.
    """
    if image.mode in SIXTEEN_BIT:
        values, highest = np.asarray(image), 2**bit_depth - 1
        if values.min() < 0 or values.max() > highest:
            allowed = f"0 to {highest} ({bit_depth} bits, see prepare.bit_depth) is allowed"
            raise Rejected("range", f"values from {values.min()} to {values.max()}; {allowed}")
        scaled = (values.astype(np.float32) * np.float32(255) / np.float32(highest)).round()
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
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
        return Image.open(io.BytesIO(content), formats=formats(content))
    except Image.DecompressionBombError as error:
        raise Rejected("bomb", f"{str(error).partition(',')[0]}, prepare.max_pixels") from error
    except UnidentifiedImageError:
        if is_heic(content):
            raise Rejected("broken", "HEIC that cannot be decoded: its boxes are damaged, or cut off") from None
        raise Rejected("no image", f"none of {', '.join(FORMATS)}, HEIC; it begins with {content[:12]!r}") from None


def is_heic(content: bytes) -> bool:
    """Returns True if the first box of a file, of which `content` is the beginning, names a brand of HEIC."""
    if content[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(content[:4], "big"), 256)
    return bool(HEIC_BRANDS & {content[start : start + 4] for start in (8, *range(16, length - 3, 4))})


def formats(content: bytes) -> tuple[str, ...]:
    """Returns the formats that Pillow may open a file as, of which `content` is the beginning.

    The reader of HEIC is loaded and registered with the first such file.
    """
    if not is_heic(content):
        return FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener()  # does nothing the second time
    return ("HEIF",)


def _check(image: Image.Image, rules: Rules) -> None:
    width, height = image.size
    if width * height > rules.max_pixels:
        raise Rejected("bomb", f"{width} x {height} pixels, above prepare.max_pixels {rules.max_pixels}")
    if min(width, height) < rules.min_side:
        raise Rejected("small", f"{width} x {height} pixels, below prepare.min_side {rules.min_side}")
    if max(width, height) > rules.max_aspect * min(width, height):
        raise Rejected("aspect", f"{width} x {height} pixels, above prepare.max_aspect {rules.max_aspect:g}")


def _decode(image: Image.Image, size: int) -> tuple[int, tuple[str, ...]]:
    """Decodes in place, a JPEG at a fraction of its size if that is enough. Returns EXIF's orientation, and notes."""
    image.draft("RGB", (2 * size, 2 * size))
    image.load()
    orientation = _orientation(image)
    applies = {
        f"converted from {image.mode}": image.mode not in ("RGB", "L"),
        "turned upright by EXIF": orientation in TRANSPOSE,
        "EXIF cannot be read: not turned": orientation == -1,
        "animated: first frame taken": getattr(image, "n_frames", 1) > 1,
    }
    return orientation, tuple(note for note, true in applies.items() if true)


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation, 1 to 8, or -1 if EXIF is damaged. Other fields may be of any type."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error):
        return -1
    return value if isinstance(value, int) else 1


def _peak(image: Image.Image, rgb: Image.Image, rules: Rules) -> int:
    """Returns the largest value of a file with 16 bits a channel.

    Raises Rejected for a color image if `bit_depth` says that the bits that Pillow drops are those that count.
    """
    if image.mode in SIXTEEN_BIT:
        return int(np.asarray(image).max())
    if rules.bit_depth < 16:
        raise Rejected(
            "range",
            f"a color image with 16 bits a channel, of which Pillow reads the upper 8: with prepare.bit_depth "
            f"{rules.bit_depth} they are empty; save it with 8 bits a channel",
        )
    return int(np.asarray(rgb).max()) * 256 + 255
