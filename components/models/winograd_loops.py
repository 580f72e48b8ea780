"""Pictures into the basis of `winograd` and back, channels last: a row of tiles at a time, which stays in the cache."""

from __future__ import annotations

import numba
import numpy as np

from components.kernels import compiled

TILE = 4  # places of the output a side

exact = compiled(fastmath={"contract"})
shared = compiled(fastmath={"contract"}, parallel=True)


@exact
def _mix(factors, a, b, c, d, e, out):  # type: ignore[no-untyped-def]
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


@exact
def _cut_some(images, factors, places, margin, out, first, end):  # type: ignore[no-untyped-def]
    height, width, channels = images.shape[1:]
    rows, across = out.shape[2:]
    side, reach = len(factors), places.max() + 1
    row = -(-(TILE * (across // channels - 1) + reach) // TILE)
    band = np.zeros((reach, TILE, row, channels), np.float32)  # rows of pixels, by their column within a tile
    flat = band.reshape(reach, -1)
    half = np.zeros((side, TILE * row * channels), np.float32)  # in the other basis down the rows
    by = half.reshape(side, TILE, -1)
    for n in range(first, end):
        for ty in range(rows):
            for k in range(reach):
                y = TILE * ty - margin + k
                if 0 <= y < height:
                    for x in range(width):
                        place, found = band[k, (x + margin) % TILE, (x + margin) // TILE], images[n, y, x]
                        for i in range(channels):
                            place[i] = found[i]
                else:
                    band[k] = 0
            for i in range(side):
                f = places[i]
                _mix(factors[i], flat[f[0]], flat[f[1]], flat[f[2]], flat[f[3]], flat[f[4]], half[i])
            for i in range(side):
                for j in range(side):
                    f = places[j]
                    a = by[i, f[0] % TILE, f[0] // TILE * channels :]
                    b = by[i, f[1] % TILE, f[1] // TILE * channels :]
                    c = by[i, f[2] % TILE, f[2] // TILE * channels :]
                    d = by[i, f[3] % TILE, f[3] // TILE * channels :]
                    e = by[i, f[4] % TILE, f[4] // TILE * channels :]
                    _mix(factors[j], a, b, c, d, e, out[i * side + j, n, ty])


@shared
def cut(images, factors, places, margin, out, parts):  # type: ignore[no-untyped-def]
    for part in numba.prange(parts):
        first, end = len(images) * part // parts, len(images) * (part + 1) // parts
        _cut_some(images, factors, places, margin, out, first, end)


@exact
def _join_some(tiles, factors, places, margin, out, first, end):  # type: ignore[no-untyped-def]
    height, channels = out.shape[1], out.shape[3]
    side, _, _, rows, across = tiles.shape
    reach = len(factors)
    half = np.zeros((side, across), np.float32)  # one row of pixels of a row of tiles, across still in the other basis
    row = np.zeros((reach, across // channels, channels), np.float32)  # the same as pixels, by their column in a tile
    flat = row.reshape(reach, -1)
    for n in range(first, end):
        for ty in range(rows):
            for k in range(reach):
                y = TILE * ty - margin + k
                if 0 <= y < height:
                    f = places[k]
                    for j in range(side):
                        a, b, c, d, e = tiles[f[0]], tiles[f[1]], tiles[f[2]], tiles[f[3]], tiles[f[4]]
                        _mix(factors[k], a[j, n, ty], b[j, n, ty], c[j, n, ty], d[j, n, ty], e[j, n, ty], half[j])
                    for j in range(reach):
                        f = places[j]
                        _mix(factors[j], half[f[0]], half[f[1]], half[f[2]], half[f[3]], half[f[4]], flat[j])
                    _lay(row, margin, out[n, y])


@exact
def _lay(row, margin, line):  # type: ignore[no-untyped-def]
    reach, tiles, channels = row.shape
    for k in range(reach):
        for tx in range(tiles):
            x = TILE * tx - margin + k
            if 0 <= x < len(line):
                place, found = line[x], row[k, tx]
                if margin:  # tiles overlap
                    for i in range(channels):
                        place[i] += found[i]
                else:
                    for i in range(channels):
                        place[i] = found[i]


@shared
def join(tiles, factors, places, margin, out, parts):  # type: ignore[no-untyped-def]
    for part in numba.prange(parts):
        _join_some(tiles, factors, places, margin, out, len(out) * part // parts, len(out) * (part + 1) // parts)
