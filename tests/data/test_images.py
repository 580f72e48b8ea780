"""One photo: formats, orientation, depth, and what is rejected with which words."""

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pillow_heif import from_bytes, register_heif_opener

from components.data.images import DecodedImage, Rejected, Rules, pillow_limit, read, reject_errors

RULES = Rules(10_000, 10, 4)
ROOT = Path(__file__).parents[2]
LOSSY = 6  # levels of 255 that a codec changes on average, at edges; a quarter in a wrong place changes 40 or more


@pytest.fixture(autouse=True)
def limit():
    with pillow_limit(RULES.max_pixels):
        yield


def encode(image: Image.Image, format_: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **settings)
    return file.getvalue()


def heic(image: Image.Image, **settings) -> bytes:
    register_heif_opener()
    return encode(image, "HEIF", **settings)


def decode(content: bytes, size: int = 64, rules: Rules = RULES) -> DecodedImage | Rejected:
    return reject_errors(lambda: read(content, size, rules))


def second_page_without_width() -> bytes:
    """A TIFF of two pages; in the second the tag for the width has another number."""
    page = Image.new("L", (9, 9))
    content = encode(page, "TIFF", save_all=True, append_images=[page])
    *_, width = re.finditer(rb"\x00\x01[\x03\x04]\x00\x01\x00\x00\x00", content)
    return content[: width.start()] + b"\x00\x99" + content[width.start() + 2 :]


@pytest.fixture(scope="module")
def corners() -> Image.Image:
    """96 × 64, each quarter in a color of its own."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48], pixels[:32, 48:], pixels[32:, :48], pixels[32:, 48:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("type_of_resolution", [5, 7, 2])
def test_photos_are_turned_upright_whatever_else_is_in_exif(corners, orientation, type_of_resolution):
    """A viewer shows the stored pixels moved as the standard says; Pillow's own rewriting fails on odd types."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = orientation, 72.0
    content = encode(corners, "JPEG", exif=exif, quality=95)
    position = content.index(b"\x01\x1a\x00\x05")
    content = content[: position + 2] + struct.pack(">H", type_of_resolution) + content[position + 4 :]
    image = decode(content)
    stored = np.asarray(corners)
    moved = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }
    expected = moved.get(orientation, stored)
    assert image.pixels.shape == expected.shape
    assert (image.height, image.width) == expected.shape[:2]
    assert np.abs(image.pixels.astype(int) - expected).mean() < LOSSY
    assert ("turned upright by EXIF" in image.notes) == (orientation in moved)


def test_damaged_exif_is_noted_and_the_photo_is_used(corners, monkeypatch):
    def damaged(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", damaged)
    assert decode(encode(corners, "PNG")).notes == ("EXIF cannot be read: not turned",)


@pytest.mark.parametrize(
    ("format_", "settings"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 95}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("JPEG2000", {}),
        ("PPM", {}),
        ("QOI", {}),
        ("MPO", {"quality": 95}),
    ],
)
def test_every_format_of_photos_is_read(corners, format_, settings):
    image = decode(encode(corners, format_, **settings))
    assert np.abs(image.pixels.astype(int) - np.asarray(corners)).mean() < LOSSY
    assert image.format in (format_, "JPEG")  # an MPO of one frame is a JPEG


def test_odd_modes_become_rgb(corners):
    gray = np.asarray(corners.convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    for content in (encode(deep, "PNG"), encode(deep, "TIFF"), encode(corners.convert("L"), "PNG")):
        assert np.array_equal(decode(content).pixels, np.repeat(gray[..., None], 3, 2))
    for content in (encode(corners.convert("CMYK"), "TIFF"), encode(corners.convert("P"), "PNG")):
        assert np.abs(decode(content).pixels.astype(int) - np.asarray(corners)).mean() < LOSSY
    frames = encode(corners, "GIF", save_all=True, append_images=[corners.rotate(180)])
    assert decode(frames).notes[-1] == "animated: first frame taken"
    assert decode(encode(corners.convert("1"), "PNG")).pixels.max() == 255


@pytest.mark.parametrize(
    ("content", "kind", "why"),
    [
        (b"", "empty", "zero bytes"),
        (b"a letter", "no image", "none of JPEG, PNG, .*; it begins with b'a letter'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image", "none of JPEG"),  # would run Ghostscript
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "broken", "HEIC that cannot be decoded"),
        (heic(Image.new("RGB", (50, 50)))[:-30], "broken", "cannot be decoded"),
        (heic(Image.new("RGB", (150, 150))), "bomb", "22500 pixels.* limit of 10000 pixels, prepare.max_pixels"),
        (encode(Image.new("RGB", (50, 50)), "PNG")[:60], "broken", "cannot be decoded: .*Error: "),
        (
            encode(Image.new("RGB", (150, 150)), "PNG"),
            "bomb",
            "22500 pixels.* limit of 10000 pixels, prepare.max_pixels",
        ),
        (second_page_without_width(), "broken", "TypeError: Missing dimensions"),
        (encode(Image.new("RGB", (9, 9)), "AVIF").replace(b"iloc", b"xloc"), "broken", "RuntimeError: Failed to "),
        (encode(Image.new("RGB", (9, 3)), "PNG"), "small", "9 x 3 pixels, below prepare.min_side 4"),
        (encode(Image.new("RGB", (99, 5)), "PNG"), "aspect", "99 x 5 pixels, above prepare.max_aspect 10"),
        (encode(Image.new("F", (9, 9)), "TIFF"), "range", "float pixels: no known range"),
        (encode(Image.new("I", (9, 9), -5), "TIFF"), "range", "values from -5 to -5; 0 to 65535 "),
        (encode(Image.new("LAB", (9, 9)), "TIFF"), None, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_used_is_rejected_with_a_reason(content, kind, why):
    image = decode(content)
    if kind is None:
        assert isinstance(image, DecodedImage) or image.kind == "broken"
        return
    assert isinstance(image, Rejected)
    assert image.kind == kind
    assert re.search(why, str(image)), str(image)


def test_color_of_sixteen_bits_shows_its_upper_eight():
    """Pillow drops the lower bits, so that a depth of 12 cannot be honored for color images."""
    pixels = np.random.default_rng(0).integers(0, 4096, (8, 8, 3)).astype(np.uint16)
    content = png(pixels)
    assert decode(content).peak == int(pixels.max()) // 256 * 256 + 255 < 4096
    rejected = decode(content, rules=Rules(10_000, 10, 4, 12))
    assert rejected.kind == "range"
    assert "save it with 8 bits a channel" in str(rejected)
    assert decode(encode(Image.new("RGB", (9, 9), "white"), "PNG")).peak is None


def test_an_error_that_no_file_should_raise_is_unexpected(corners, monkeypatch):
    content = encode(corners, "PNG")
    for name, error in (("has_transparency_data", ZeroDivisionError), ("load", RuntimeError)):
        with monkeypatch.context() as patch:

            def fail(*_, error=error):
                raise error("a fault")

            patch.setattr(Image.Image, name, property(fail) if name != "load" else fail)
            patch.setattr("PIL.ImageFile.ImageFile.load", fail, raising=False)
            rejected = decode(content)
        assert rejected.kind == "unexpected"
        assert str(rejected).startswith(f"{error.__name__}: a fault (in test_images.py, line ")


def test_pillows_own_limit_is_restored():
    before = Image.MAX_IMAGE_PIXELS
    with pillow_limit(10):
        assert Image.MAX_IMAGE_PIXELS == 5
    assert before == Image.MAX_IMAGE_PIXELS


def test_heic_is_read_upright_and_its_reader_is_loaded_with_the_first_such_file(corners):
    exif = Image.Exif()
    exif[0x0112] = 6  # an iPhone held upright
    image = decode(heic(corners, exif=exif.tobytes(), quality=95))
    expected = np.rot90(np.asarray(corners), -1)
    assert (image.format, image.height, image.width) == ("HEIF", 96, 64)
    assert np.abs(image.pixels.astype(int) - expected).mean() < LOSSY
    assert np.abs(decode(heic(corners, quality=95)).pixels.astype(int) - np.asarray(corners)).mean() < LOSSY
    script = "import sys; import components.data.images; assert 'pillow_heif' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_heic_of_ten_bits_and_of_several_pictures(corners):
    deep = np.repeat((np.asarray(corners).astype(np.uint16) * 257)[..., :1], 3, 2)
    file = io.BytesIO()
    from_bytes("RGB;16", corners.size, deep.tobytes()).save(file, quality=95)
    assert np.abs(decode(file.getvalue()).pixels.astype(int) - np.asarray(corners)[..., :1]).mean() < LOSSY
    several = heic(corners, save_all=True, append_images=[corners.rotate(180)], quality=95)
    assert np.abs(decode(several).pixels.astype(int) - np.asarray(corners)).mean() < LOSSY


def tiff(values: np.ndarray) -> bytes:
    """Returns a TIFF of 16 bits a channel, uint16 [h, w] or [h, w, 3], which Pillow does not write in color."""
    height, width, *_ = values.shape
    channels = values[0, 0].size
    tags = [  # number, type (3: 16 bits, 4: 32 bits), count, value
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, 0),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if channels == 3 else 1),
        (273, 4, 1, 0),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, values.size * 2),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    where = {258: start if channels == 3 else 16, 273: start + 2 * channels}
    entries = b"".join(struct.pack("<HHII", n, kind, count, where.get(n, value)) for n, kind, count, value in tags)
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return header + bits + values.astype("<u2").tobytes()


def png(values: np.ndarray) -> bytes:
    """Returns a PNG of 16 bits a channel, uint16 [h, w] or [h, w, 3]."""
    height, width, *_ = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("write", [tiff, png])
@pytest.mark.parametrize("shape", [(9, 12), (9, 12, 3)])
def test_sixteen_bits_a_channel_are_scaled_and_not_cut_off(write, shape):
    values = np.linspace(0, 65535, int(np.prod(shape))).reshape(shape).astype(np.uint16)
    image = decode(write(values))
    expected = values.astype(float) / 257
    error = np.abs(image.pixels - (expected if len(shape) == 3 else expected[..., None]))
    assert error.max() <= (1 if len(shape) == 3 else 0.51)  # of color, Pillow reads the upper eight bits
    assert image.peak >= 65280
