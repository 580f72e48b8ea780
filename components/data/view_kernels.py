"""Compiled loops that render one photo at a time, which stays in the processor's cache.

All of them are in one file, because numba notices changes of a cached function's own file alone.
"""

from __future__ import annotations

import math

import numpy as np

from components.data.view_params import BRIGHTNESS, CONTRAST, HUE
from components.kernels import compiled

LUMA = tuple(np.float32(weight) for weight in (0.2989, 0.587, 0.114))  # as torchvision's rgb_to_grayscale

fast = compiled(fastmath=True)


@fast
def render_photos(pixels, where, boxes, flips, orders, strengths, sigmas, solarized, blur_kernel_size, out):  # type: ignore[no-untyped-def]
    """Renders one view of each photo into out, uint8 [B, 3, S, S]; where: int64 [B, 2], offset and width in pixels."""
    size = out.shape[2]
    x = np.empty((3, size, size), np.float32)
    for b in range(len(out)):
        offset, stride = where[b]
        _resize(pixels[offset:], stride, boxes[b], flips[b], x)
        _color(x, orders[b], strengths[b])
        if sigmas[b] > 0:
            _blur(x, sigmas[b], blur_kernel_size)
        _write(x, solarized[b], out[b])


@fast
def _resize(pixels, stride, box, flip, x):  # type: ignore[no-untyped-def]
    """Resizes the box into x [3, S, S] with a triangle filter (Pillow's antialiased bilinear): rows, then columns."""
    top, left, height, width = box
    size = x.shape[1]
    step = width / size
    support = max(1.0, step)
    widest = 2 * math.ceil(support) + 1
    weights = np.zeros((size, widest), np.float32)
    starts, counts = np.empty(size, np.int64), np.empty(size, np.int64)
    for i in range(size):
        center = ((size - 1 - i if flip else i) + 0.5) * step
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), width)
        total = 0.0
        for j in range(first, last):
            total += max(0.0, 1.0 - abs(j + 0.5 - center) / support)
        for j in range(first, last):
            weights[i, j - first] = max(0.0, 1.0 - abs(j + 0.5 - center) / support) / total
        starts[i], counts[i] = first, last - first
    step = height / size
    support = max(1.0, step)
    line = np.empty(3 * width, np.float32)
    for y in range(size):
        center = (y + 0.5) * step
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), height)
        total = 0.0
        for j in range(first, last):
            total += max(0.0, 1.0 - abs(j + 0.5 - center) / support)
        line[:] = 0
        for j in range(first, last):
            weight = np.float32(max(0.0, 1.0 - abs(j + 0.5 - center) / support) / total)
            begin = ((top + j) * stride + left) * 3
            row = pixels[begin : begin + 3 * width]
            for k in range(3 * width):
                line[k] += weight * np.float32(row[k])
        for i in range(size):
            red, green, blue = np.float32(0), np.float32(0), np.float32(0)
            source = 3 * starts[i]
            for j in range(counts[i]):
                weight = weights[i, j]
                red += weight * line[source]
                green += weight * line[source + 1]
                blue += weight * line[source + 2]
                source += 3
            x[0, y, i], x[1, y, i], x[2, y, i] = red, green, blue


@fast
def _color(x, order, strengths):  # type: ignore[no-untyped-def]
    """The color steps in `order`, each clamped to 0 … 255 as torchvision clamps it."""
    for kind in order:
        strength = strengths[kind]
        if kind == HUE:
            if strength != 0:
                _shift_hue(x, strength)
        elif strength == 1:
            continue
        elif kind == BRIGHTNESS:
            _scale(x, strength, np.float32(0))
        elif kind == CONTRAST:
            _scale(x, strength, (1 - strength) * _mean_luma(x))
        else:  # saturation, and gray
            _saturate(x, strength)


@fast
def _mean_luma(x):  # type: ignore[no-untyped-def]
    """Returns the mean of the gray image."""
    total = np.float64(0)
    for y in range(x.shape[1]):
        red, green, blue = np.float32(0), np.float32(0), np.float32(0)
        for i in range(x.shape[2]):
            red += x[0, y, i]
            green += x[1, y, i]
            blue += x[2, y, i]
        total += LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return np.float32(total / (x.shape[1] * x.shape[2]))


@fast
def _scale(x, factor, shift):  # type: ignore[no-untyped-def]
    """Brightness and contrast: factor · x + shift, clamped to 0 … 255."""
    low, high = np.float32(0), np.float32(255)
    flat = x.reshape(-1)
    for i in range(len(flat)):
        flat[i] = min(high, max(low, factor * flat[i] + shift))


@fast
def _saturate(x, factor):  # type: ignore[no-untyped-def]
    """Blends each pixel with its gray: factor · x + (1 - factor) · luma, clamped to 0 … 255; factor 0 makes it gray."""
    low, high, rest = np.float32(0), np.float32(255), np.float32(1) - factor
    for y in range(x.shape[1]):
        red, green, blue = x[0, y], x[1, y], x[2, y]
        for i in range(x.shape[2]):
            gray = rest * (LUMA[0] * red[i] + LUMA[1] * green[i] + LUMA[2] * blue[i])
            red[i] = min(high, max(low, factor * red[i] + gray))
            green[i] = min(high, max(low, factor * green[i] + gray))
            blue[i] = min(high, max(low, factor * blue[i] + gray))


@fast
def _shift_hue(x, shift):  # type: ignore[no-untyped-def]
    """Rotates the hue of HSV by `shift` turns."""
    low, one, four, six, turn = np.float32(0), np.float32(1), np.float32(4), np.float32(6), np.float32(6) * shift
    for y in range(x.shape[1]):
        red, green, blue = x[0, y], x[1, y], x[2, y]
        for i in range(x.shape[2]):
            r, g, b = red[i], green[i], blue[i]
            value = max(r, max(g, b))
            chroma = value - min(r, min(g, b))
            scale = one / max(chroma, np.float32(1e-6))
            sector = four + (r - g) * scale  # in sixths of a turn
            sector = np.float32(2) + (b - r) * scale if value == g else sector
            sector = (g - b) * scale if value == r else sector
            sector += turn
            # V - C max(0, min(k, 4 - k, 1)), k = (n + H) mod 6 for n = 5, 3, 1
            k = sector + np.float32(5)
            k -= six * np.floor(k / six)
            red[i] = value - chroma * max(low, min(one, min(k, four - k)))
            k = sector + np.float32(3)
            k -= six * np.floor(k / six)
            green[i] = value - chroma * max(low, min(one, min(k, four - k)))
            k = sector + one
            k -= six * np.floor(k / six)
            blue[i] = value - chroma * max(low, min(one, min(k, four - k)))


@fast
def _blur(x, sigma, blur_kernel_size):  # type: ignore[no-untyped-def]
    """Blurs along rows into a buffer, then along columns back; the border is reflected.

    Beyond four deviations the kernel is left out: less than 1e-4 of its weight, 0.02 of 255.
    """
    size, radius = x.shape[1], min(blur_kernel_size // 2, math.ceil(4 * sigma))
    taps = 2 * radius + 1
    weights = np.empty(taps, np.float32)
    for t in range(taps):
        weights[t] = math.exp(-0.5 * ((t - radius) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.empty(size + 2 * radius, np.float32)
    blurred_rows = np.empty((size, size), np.float32)
    for c in range(3):
        for y in range(size):
            padded[radius : radius + size] = x[c, y]
            for i in range(radius):
                padded[i], padded[radius + size + i] = x[c, y, radius - i], x[c, y, size - 2 - i]
            line = blurred_rows[y]
            line[:] = 0
            for t in range(taps):
                weight = weights[t]
                for i in range(size):
                    line[i] += weight * padded[i + t]
        for y in range(size):
            line = x[c, y]
            line[:] = 0
            for t in range(taps):
                k = abs(y + t - radius)
                source = blurred_rows[2 * size - 2 - k if k >= size else k]
                weight = weights[t]
                for i in range(size):
                    line[i] += weight * source[i]


@fast
def _write(x, solarized, out):  # type: ignore[no-untyped-def]
    """Solarizes x if `solarized`, and writes it to `out`, rounded to uint8."""
    size = x.shape[1]
    for c in range(3):
        for y in range(size):
            for i in range(size):
                value = x[c, y, i]
                if solarized and value >= 128:
                    value = 255 - value
                out[c, y, i] = np.uint8(min(np.float32(255), max(np.float32(0), np.rint(value))))
