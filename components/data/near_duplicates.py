"""Finds photos that are nearly the same: resized, compressed again, a little brighter, or cropped at their edges.

A hash of 64 bits names candidates without comparing all pairs. Two candidates are near-duplicates if they have the same
colors, and if their small gray pictures correlate once one is aligned with the other. Sources: Zauner, Implementation
and benchmarking of perceptual image hash functions (2010), section 3.2.1, for hashes of the discrete cosine transform
(pHash); Norouzi, Punjani and Fleet, Fast search in Hamming space with multi-index hashing (CVPR 2012), for the lookup;
Lucas and Kanade, An iterative image registration technique (IJCAI 1981), one step, for the alignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 32  # pixels of the square that is transformed
THUMBNAIL = 16  # pixels on a side of the pictures that are correlated
MAX_DISTANCE = 11  # bits of two hashes that may differ
# MAX_DISTANCE < BANDS · (FLIPS + 1): at least one band of a pair differs in at most FLIPS bits
BANDS, BAND_BITS, FLIPS = 4, 16, 2
MIN_CONTRAST = 2.0  # gray levels of standard deviation; below it a picture is noise, and resembles nothing
CELLS, MAX_COLOR = 4, 2.5  # parts on a side whose colors are compared; mean difference of Cb and Cr, of 255
MIN_UNALIGNED = 0.85  # correlation below which no alignment is tried
MIN_CORRELATION = 0.96
STIFFNESS = 0.1  # of the alignment, in variances of the picture per squared pixel of THUMBNAIL
CHUNK = 200_000  # hashes compared at once, and pairs that are kept until some are dropped
BLOCK = 500  # pairs of pictures compared at once
LINKS = 32  # near-duplicates that are kept of one photo

_DCT = np.cos(np.pi / SIDE * np.outer(np.arange(SIDE), np.arange(SIDE) + 0.5)).astype(np.float32)  # type II
# the lowest 64 frequencies (u, v) but for the constant one, which is the brightness; pHash takes a square of 8 × 8
_LOWEST: np.ndarray = np.array(sorted(np.ndindex(SIDE, SIDE), key=lambda uv: (sum(uv), max(uv), uv))[1:65]).T


class Signature(NamedTuple):
    """Of a photo squeezed into a square. hash: 64 bits. gray: THUMBNAIL² values. colors: of CELLS² parts, Cb and Cr."""

    hash: int
    gray: bytes
    colors: bytes


class Pair(NamedTuple):
    """Two rows of a data set, first < second, that show nearly the same, and how their small pictures correlate."""

    first: int
    second: int
    correlation: float


def sign(photo: Image.Image, gray: Image.Image) -> Signature:
    """Returns the signature of a photo, RGB and as `gray`. The hash has the signs of the 64 lowest frequencies."""
    square = gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    spectrum = _DCT @ np.asarray(square, np.float32) @ _DCT.T
    bits = np.packbits(spectrum[*_LOWEST] > 0)
    cells = np.asarray(photo.resize((CELLS, CELLS), Image.Resampling.BOX).convert("YCbCr"))
    thumbnail = square.reduce(SIDE // THUMBNAIL)
    return Signature(int.from_bytes(bits.tobytes(), "big"), thumbnail.tobytes(), cells[..., 1:].tobytes())


def find_pairs(signatures: Sequence[Signature]) -> list[Pair]:
    """Returns all pairs whose hashes differ in at most MAX_DISTANCE bits and that show nearly the same, sorted.

    None is missed, except that of a photo with more than LINKS near-duplicates only the nearest are returned. A photo
    is compared with those that share a band up to two bits: a 120th of the others, if hashes are evenly spread. Time
    grows with the number of pairs that look alike, memory does not.
    """
    if len(signatures) < 2:
        return []
    hashes = np.array([signature.hash for signature in signatures], np.uint64)
    pictures, colors = (
        np.frombuffer(b"".join(values), np.uint8).reshape(len(hashes), -1)
        for values in ((signature.gray for signature in signatures), (signature.colors for signature in signatures))
    )
    pairs: list[tuple[np.ndarray, ...]] = []
    for first, second in candidates(hashes):
        for start in range(0, len(first), BLOCK):
            one, other = first[start : start + BLOCK], second[start : start + BLOCK]
            distance = np.abs(colors[one].astype(np.int16) - colors[other]).mean(1)
            is_similar = (distance <= MAX_COLOR) & (correlate(pictures[one], pictures[other]) >= MIN_UNALIGNED)
            one, other = one[is_similar], other[is_similar]
            correlation = align(pictures[one], pictures[other])
            is_near = correlation >= MIN_CORRELATION
            pairs.append((one[is_near], other[is_near], correlation[is_near]))
        if sum(len(correlation) for *_, correlation in pairs) > CHUNK:
            pairs = [_nearest(pairs)]
    rows = zip(*(values.tolist() for values in _nearest(pairs)), strict=True) if pairs else ()
    return sorted(Pair(*row) for row in rows)


def _nearest(pairs: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Returns those of the pairs (first, second, correlation) that are among the LINKS nearest of one of their rows."""
    first, second, correlation = (np.concatenate(values) for values in zip(*pairs, strict=True))
    keep = np.zeros(len(first), bool)
    for rows in (first, second):
        order = np.lexsort((-correlation, rows))
        sorted_rows = rows[order]
        keep[order] |= np.arange(len(order)) - np.searchsorted(sorted_rows, sorted_rows) < LINKS
    return first[keep], second[keep], correlation[keep]


def correlate(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the correlation of pictures with pictures, uint8 [P, pixels] each: float32 [P], 0 where one is flat."""
    products: np.ndarray = (_standardize(one) * _standardize(other)).mean(1)
    return products


def align(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Returns `correlate` after each of `moving` was shifted and stretched by a fraction of a pixel to fit `fixed`.

    `fixed` is regressed on the moving picture, its derivatives along x and y (for a shift), and these times x and y
    (for a crop), with a penalty on all but the picture.
    """
    picture, target = _standardize(moving), _standardize(fixed)
    dy, dx = np.gradient(picture.reshape(-1, THUMBNAIL, THUMBNAIL), axis=(1, 2))
    y, x = np.mgrid[-1 : 1 : THUMBNAIL * 1j, -1 : 1 : THUMBNAIL * 1j].astype(np.float32)
    moves = [values.reshape(picture.shape) for values in (dy, dx, dy * y, dx * x)]
    terms = np.stack([picture, *moves, np.ones_like(picture)], 1)  # [P, 6, pixels]
    penalty = np.diag([1e-6, *[STIFFNESS] * 4, 1e-6]).astype(np.float32) * picture.shape[1]
    weights = np.linalg.solve(terms @ terms.transpose(0, 2, 1) + penalty, terms @ target[:, :, None])  # [P, 6, 1]
    fitted = (terms * weights).sum(1)
    fitted -= fitted.mean(1, keepdims=True)
    correlation: np.ndarray = (fitted * target).mean(1) / np.maximum(fitted.std(1), 1e-6)
    return correlation


def _standardize(pictures: np.ndarray) -> np.ndarray:
    """Returns uint8 [P, pixels] as float32 of mean 0 and variance 1; 0 where a picture is flat."""
    centered = pictures.astype(np.float32)
    centered -= centered.mean(1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(1, keepdims=True))
    scaled: np.ndarray = centered * (deviation >= MIN_CONTRAST) / np.maximum(deviation, MIN_CONTRAST)
    return scaled


def candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows first < second, int64 [P] each, of hashes uint64 [N] at most MAX_DISTANCE bits apart.

    For each band, photos are sorted by its value; each photo is paired with those of the same value and of values with
    up to FLIPS bits flipped. A pair comes once, from the first band that finds it.
    """
    flips = [
        sum(bits) for count in range(FLIPS + 1) for bits in combinations((1 << b for b in range(BAND_BITS)), count)
    ]
    rows = np.arange(len(hashes))
    for band in range(BANDS):
        values = (hashes >> np.uint64(BAND_BITS * band)).astype(np.uint16).astype(np.int64)
        order = np.argsort(values, kind="stable")
        counts = np.bincount(values, minlength=2**BAND_BITS)
        starts = counts.cumsum() - counts
        for flipped in flips:
            partners = values ^ flipped
            queries = rows[values <= partners]  # each pair of values once
            for one, other in _query_pairs(queries, order, starts[partners[queries]], counts[partners[queries]]):
                first, second = _new_pairs(hashes, one, other, band)
                if len(first):
                    yield first, second


def _new_pairs(hashes: np.ndarray, one: np.ndarray, other: np.ndarray, band: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs whose hashes are near, lower row first, without those that a band before `band` has found."""
    bits = hashes[one] ^ hashes[other]  # those that differ
    # two rows with the same value come twice, each as the query for the other
    is_unique = (one < other) | ((bits >> np.uint64(BAND_BITS * band)).astype(np.uint16) > 0)
    is_near = is_unique & (np.bitwise_count(bits) <= MAX_DISTANCE)
    first, second, bits = np.minimum(one, other)[is_near], np.maximum(one, other)[is_near], bits[is_near]
    new = np.ones(len(first), bool)
    for earlier in range(band):
        new &= np.bitwise_count((bits >> np.uint64(BAND_BITS * earlier)).astype(np.uint16)) > FLIPS
    return first[new], second[new]


def _query_pairs(
    queries: np.ndarray, order: np.ndarray, starts: np.ndarray, counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each of `queries` with its `counts` rows of `order` from `starts` on, about CHUNK pairs at a time."""
    ends = counts.cumsum()
    start = 0
    while start < len(queries):
        num_yielded = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, num_yielded + CHUNK, side="right")))
        count = counts[start:end]
        offsets = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
        yield np.repeat(queries[start:end], count), order[np.repeat(starts[start:end], count) + offsets]
        start = end
