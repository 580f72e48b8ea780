"""Reads damaged files of every format that Pillow writes here, and counts what is not read or rejected by name.

    python -m benchmarks.fuzz_images --count 40000

File number i depends on --seed and i alone. Files are read in a process of their own, so that a crash and a file that
takes longer than --limit seconds are counted too; --memory limits that process. Exits with 1 if anything escapes.
"""

from __future__ import annotations

import io
import resource
import struct
import sys
import time
import zlib
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

from components.data.images import FORMATS, DecodedImage, Rejected, Rules, pillow_limit, read, reject_errors
from components.progress import progress

RULES = Rules(max_pixels=4_000_000, max_aspect=10.0, min_side=8)
VARIANTS: tuple[
    tuple[str, str, dict[str, object]], ...
] = (  # format, mode, settings; the others are added by `samples`
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"exif": True}),
    ("JPEG", "CMYK", {"progressive": True, "exif": True}),
    ("JPEG", "L", {"progressive": True}),
    ("MPO", "RGB", {"save_all": True, "exif": True}),
    ("PNG", "RGB", {"exif": True}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "LA", {}),
    ("PNG", "I;16", {}),
    ("PNG", "RGB", {"save_all": True}),
    ("WEBP", "RGB", {"exif": True}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGB", {"save_all": True}),
    ("AVIF", "RGB", {"exif": True}),
    ("AVIF", "RGBA", {}),
    ("AVIF", "RGB", {"save_all": True}),
    ("HEIF", "RGB", {"exif": True}),
    ("HEIF", "RGBA", {}),
    ("HEIF", "RGB", {"save_all": True}),
    ("GIF", "P", {"save_all": True, "transparency": 3}),
    ("GIF", "L", {}),
    ("TIFF", "RGB", {"exif": True}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "CMYK", {"compression": "tiff_deflate"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "L", {"compression": "packbits", "save_all": True}),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "I;16", {}),
    ("TIFF", "I", {}),
    ("TIFF", "F", {}),
    ("TIFF", "LAB", {}),
    ("TIFF", "RGBA", {"compression": "zstd"}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("DIB", "RGB", {}),
    ("JPEG2000", "RGB", {}),
    ("JPEG2000", "I;16", {"irreversible": False}),
    ("PPM", "RGB", {}),
    ("PPM", "I", {}),
    ("PPM", "1", {}),
    ("QOI", "RGBA", {}),
)


@cache
def samples() -> tuple[tuple[str, bytes], ...]:
    """Returns small valid files as (format, content): VARIANTS, and every other format that Pillow writes."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 4), dtype=np.uint8), "RGBA")
    image = coarse.resize((48, 36), Image.Resampling.BICUBIC)
    Image.init()
    register_heif_opener()
    variants = [(name, "RGB", {}) for name in sorted(Image.SAVE) if name not in {variant[0] for variant in VARIANTS}]
    files = []
    for name, mode, settings in (*VARIANTS, *variants):
        try:
            files.append((name, _encode(image, name, mode, dict(settings))))
        except (OSError, KeyError, ValueError):  # Pillow was built without it, or it has no RGB
            print(f"not written here: {name} {mode} {settings}", file=sys.stderr)
    return tuple(files)


def _encode(image: Image.Image, name: str, mode: str, settings: dict[str, object]) -> bytes:
    gray = np.asarray(image.convert("L"))
    deep = {"I;16": gray.astype(np.uint16) * 257, "I": gray.astype(np.int32), "F": gray.astype(np.float32)}
    if mode in deep:
        image = Image.fromarray(deep[mode])
    elif mode == "LAB":
        image = Image.merge("LAB", image.convert("RGB").split())
    else:
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK", "1") else image.convert(mode)
    if settings.get("exif"):
        exif = Image.Exif()
        exif[0x0112], exif[0x011A], exif[0x010F] = 6, 72.0, "maker"
        settings["exif"] = exif
    if settings.get("save_all"):
        settings["append_images"] = [image.transpose(Image.Transpose.ROTATE_180)]
    file = io.BytesIO()
    image.save(file, name, **settings)
    return file.getvalue()


def damaged(seed: int, index: int) -> tuple[str, bytes]:
    """Returns the format and the content of file number `index`: a sample with one to three kinds of damage."""
    random = np.random.default_rng([seed, index])
    name, content = samples()[index % len(samples())]
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        kind = DAMAGES[random.integers(len(DAMAGES))]
        data = kind(data, random) if data else data
    return name, bytes(data)


def _truncate(data: bytearray, random: np.random.Generator) -> bytearray:
    return data[: random.integers(len(data) + 1)]


def _flip(data: bytearray, random: np.random.Generator) -> bytearray:
    for position in random.integers(len(data), size=random.integers(1, 20)):
        data[position] ^= 1 << int(random.integers(8))
    return data


def _overwrite(data: bytearray, random: np.random.Generator) -> bytearray:
    """Bytes anywhere, or among the first 64, become extreme or random ones."""
    end = len(data) if random.random() < 0.5 else min(64, len(data))
    for position in random.integers(end, size=random.integers(1, 6)):
        data[position] = (0, 1, 127, 128, 255, int(random.integers(256)))[random.integers(6)]
    return data


def _zeros(data: bytearray, random: np.random.Generator) -> bytearray:
    start, length = random.integers(len(data)), random.integers(1, len(data) + 1)
    data[start : start + length] = bytes(len(data[start : start + length]))
    return data


def _splice(data: bytearray, random: np.random.Generator) -> bytearray:
    """The rest is that of another file, or a part of the same file once more."""
    source = data if random.random() < 0.5 else samples()[random.integers(len(samples()))][1]
    return data[: random.integers(len(data) + 1)] + source[random.integers(len(source) + 1) :]


def _tags(data: bytearray, random: np.random.Generator) -> bytearray:
    """Tags of EXIF or of a TIFF get another type, count or value."""
    start = data.find(b"Exif\0\0") + 6
    start = start if start >= 6 else max(data.find(b"II*\0"), data.find(b"MM\0*"))
    if start < 0 or start + 10 > len(data):
        return _flip(data, random)
    order = "<" if data[start : start + 1] == b"I" else ">"
    first = start + struct.unpack(f"{order}I", data[start + 4 : start + 8])[0]
    count = struct.unpack(f"{order}H", data[first : first + 2])[0] if first + 2 <= len(data) else 0
    for _ in range(random.integers(1, 4)):
        entry = first + 2 + 12 * int(random.integers(max(1, min(count, 40))))
        offset, format_, highest = ((0, "H", 65536), (2, "H", 14), (4, "I", 2**32), (8, "I", 2**32))[random.integers(4)]
        value = int((random.integers(highest), random.integers(min(highest, 16)), 0, highest - 1)[random.integers(4)])
        packed = struct.pack(order + format_, value)
        if entry + offset + len(packed) <= len(data):
            data[entry + offset : entry + offset + len(packed)] = packed
    return data


def _png_checksums(data: bytearray, random: np.random.Generator) -> bytearray:
    """Flips bytes of a PNG and corrects its checksums, so that they do not reveal the damage."""
    data = _flip(data, random)
    position = 8
    while data[1:4] == b"PNG" and position + 12 <= len(data):
        end = position + 8 + struct.unpack(">I", data[position : position + 4])[0]
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return data


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], bytearray], ...] = (
    *(_truncate, _flip, _overwrite, _zeros, _splice, _tags, _png_checksums),
)


def read_damaged(seed: int, index: int) -> tuple[str, str, str]:
    """Returns the format of a file, "read" or the kind of its rejection, and the reason."""
    name, content = damaged(seed, index)
    image = reject_errors(lambda: read(content, 24, RULES))
    if isinstance(image, Rejected):
        return name, image.kind, str(image)
    assert isinstance(image, DecodedImage)
    assert image.pixels.ndim == 3
    return name, "read", ""


def _work(pipe: Connection, seed: int, start: int, stop: int, memory: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30),) * 2)
    with pillow_limit(RULES.max_pixels):
        for index in range(start, stop):
            before = time.monotonic()
            result = read_damaged(seed, index)
            pipe.send((index, *result, time.monotonic() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def results(seed: int, count: int, limit: float, memory: float) -> Iterator[tuple[int, str, str, str, float, int]]:
    """Yields index, format, kind, reason, seconds and the process's largest memory in KiB, for every file."""
    context, index = get_context("spawn"), 0
    while index < count:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sending, seed, index, count, memory))
        process.start()
        sending.close()
        why = ""
        while not why:
            try:
                wait = limit + 60 * (process.exitcode is None and index == 0)  # imports take a while
                if not receiving.poll(wait):
                    why = "hang"
                    break
                result = receiving.recv()
                index = result[0] + 1
                yield result
            except EOFError:
                process.join()
                why = "" if index == count else f"crash ({process.exitcode})"
                break
        if why:
            process.kill()
            process.join()
            yield index, damaged(seed, index)[0], why.split()[0], why, limit, 0
            index += 1


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for one file")
    parser.add_argument("--memory", type=float, default=3.0, help="GiB of addresses for the process that reads")
    args = parser.parse_args()
    kinds: dict[str, Counter[str]] = {}
    slowest, peak, num_escaped = (0.0, -1), 0, 0
    for index, name, kind, why, seconds, memory in progress(
        results(args.seed, args.count, args.limit, args.memory), "fuzz", args.count, " files"
    ):
        kinds.setdefault(name, Counter())[kind] += 1
        slowest, peak = max(slowest, (seconds, index)), max(peak, memory)
        if kind in ("unexpected", "crash", "hang"):
            num_escaped += 1
            print(f"file {index} ({name}): {kind}: {why}", flush=True)
    for name in sorted(kinds, key=lambda name: (name not in FORMATS, name)):
        print(f"{name:9} {kinds[name].total():6}  {', '.join(f'{n} {kind}' for kind, n in kinds[name].most_common())}")
    print(
        f"{args.count} files, seed {args.seed}; slowest {slowest[0]:.2f} s (file {slowest[1]}); {peak / 2**20:.2f} GiB"
    )
    print(f"escaped: {num_escaped}")
    sys.exit(num_escaped > 0)


if __name__ == "__main__":
    main()
