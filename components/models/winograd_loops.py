"""Transforms images to the basis of `winograd` and back, channels last, a row of tiles at a time: it fits the cache."""

from __future__ import annotations

import numba
import numpy as np

from components.kernels import compiled

TILE = 4  # output pixels a side

sequential = compiled(fastmath={"contract"})
parallel = compiled(fastmath={"contract"}, parallel=True)


@sequential
def _weighted_sum(factors, a, b, c, d, e, out):  # type: ignore[no-untyped-def]
    p, q, r, s, t = factors[0], factors[1], factors[2], factors[3], factors[4]
    if q == 0:
        for i in range(len(out)):
            out[i] = p * a[i]
    elif s == 0:
        for i in range(len(out)):
            out[i] = p * a[i] + q * b[i] + r * c[i]
    elif t == 0:
        for i in range(len(out)):
            out[i] = p * a[i] + q * b[i] + r * c[i] + s * d[i]
    else:
        for i in range(len(out)):
            out[i] = p * a[i] + q * b[i] + r * c[i] + s * d[i] + t * e[i]


@sequential
def _images_to_tiles(images, factors, columns, padding, out, start, stop):  # type: ignore[no-untyped-def]
    height, width, channels = images.shape[1:]
    rows, row_length = out.shape[2:]
    side, tile_height = len(factors), columns.max() + 1
    row = -(-(TILE * (row_length // channels - 1) + tile_height) // TILE)
    band = np.zeros((tile_height, TILE, row, channels), np.float32)  # pixels, by their column within a tile
    flat = band.reshape(tile_height, -1)
    half = np.zeros((side, TILE * row * channels), np.float32)  # columns transformed, rows not yet
    by_column = half.reshape(side, TILE, -1)
    for n in range(start, stop):
        for ty in range(rows):
            for k in range(tile_height):
                y = TILE * ty - padding + k
                if 0 <= y < height:
                    for x in range(width):
                        target, source = band[k, (x + padding) % TILE, (x + padding) // TILE], images[n, y, x]
                        for i in range(channels):
                            target[i] = source[i]
                else:
                    band[k] = 0
            for i in range(side):
                col = columns[i]
                _weighted_sum(factors[i], flat[col[0]], flat[col[1]], flat[col[2]], flat[col[3]], flat[col[4]], half[i])
            for i in range(side):
                for j in range(side):
                    col = columns[j]
                    a = by_column[i, col[0] % TILE, col[0] // TILE * channels :]
                    b = by_column[i, col[1] % TILE, col[1] // TILE * channels :]
                    c = by_column[i, col[2] % TILE, col[2] // TILE * channels :]
                    d = by_column[i, col[3] % TILE, col[3] // TILE * channels :]
                    e = by_column[i, col[4] % TILE, col[4] // TILE * channels :]
                    _weighted_sum(factors[j], a, b, c, d, e, out[i * side + j, n, ty])


@parallel
def to_tiles(images, factors, columns, padding, out, parts):  # type: ignore[no-untyped-def]
    for part in numba.prange(parts):
        start, stop = len(images) * part // parts, len(images) * (part + 1) // parts
        _images_to_tiles(images, factors, columns, padding, out, start, stop)


@sequential
def _images_from_tiles(tiles, factors, columns, padding, out, start, stop):  # type: ignore[no-untyped-def]
    height, channels = out.shape[1], out.shape[3]
    side, _, _, rows, row_length = tiles.shape
    tile_height = len(factors)
    half = np.zeros((side, row_length), np.float32)  # columns transformed back, rows not yet
    # pixels of that row, by their column within a tile
    row = np.zeros((tile_height, row_length // channels, channels), np.float32)
    flat = row.reshape(tile_height, -1)
    for n in range(start, stop):
        for ty in range(rows):
            for k in range(tile_height):
                y = TILE * ty - padding + k
                if 0 <= y < height:
                    col = columns[k]
                    for j in range(side):
                        a, b, c, d, e = tiles[col[0]], tiles[col[1]], tiles[col[2]], tiles[col[3]], tiles[col[4]]
                        _weighted_sum(
                            factors[k], a[j, n, ty], b[j, n, ty], c[j, n, ty], d[j, n, ty], e[j, n, ty], half[j]
                        )
                    for j in range(tile_height):
                        col = columns[j]
                        _weighted_sum(
                            factors[j], half[col[0]], half[col[1]], half[col[2]], half[col[3]], half[col[4]], flat[j]
                        )
                    _write_row(row, padding, out[n, y])


@sequential
def _write_row(row, padding, line):  # type: ignore[no-untyped-def]
    tile_width, tiles, channels = row.shape
    for k in range(tile_width):
        for tx in range(tiles):
            x = TILE * tx - padding + k
            if 0 <= x < len(line):
                target, source = line[x], row[k, tx]
                if padding:  # tiles overlap
                    for i in range(channels):
                        target[i] += source[i]
                else:
                    for i in range(channels):
                        target[i] = source[i]


@parallel
def from_tiles(tiles, factors, columns, padding, out, parts):  # type: ignore[no-untyped-def]
    for part in numba.prange(parts):
        start, stop = len(out) * part // parts, len(out) * (part + 1) // parts
        _images_from_tiles(tiles, factors, columns, padding, out, start, stop)
