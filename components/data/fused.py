"""Views on the CPU: one pass from packed pixels to a view, compiled, a picture at a time in the processor's cache.

Crop and antialiased resize, color, blur and solarize as `batched` does them for a whole batch, without a copy of
the pictures and without rounding in between.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from components.data.view_params import BRIGHTNESS, CONTRAST, HUE, ViewParams
from components.kernels import compiled

if TYPE_CHECKING:
    from components.data.photos import Pixels

SHARE = 32  # pictures below which a thread is not worth its start


LUMA = tuple(np.float32(weight) for weight in (0.2989, 0.587, 0.114))  # as torchvision's rgb_to_grayscale

fast = compiled(fastmath=True)


def render(pixels: Pixels, params: ViewParams) -> Tensor:
    """uint8 [B, 3, S, S], on as many threads as torch uses."""
    count = len(pixels.offsets)
    out = np.empty((count, 3, params.size, params.size), dtype=np.uint8)
    given = (
        pixels.flat,
        np.stack([pixels.offsets, pixels.shapes[:, 1]], 1).astype(np.int64),
        params.boxes.numpy(),
        params.flip.numpy(),
        params.order.numpy(),
        params.strengths.numpy(),
        params.sigma.numpy(),
        params.solarize.numpy(),
    )
    parts = np.array_split(np.arange(count), min(torch.get_num_threads(), max(1, count // SHARE)))

    if not _views.signatures:
        before = time.monotonic()
        ready()
        if (took := time.monotonic() - before) > 2:
            print(f"views: compiled in {took:.0f} s, and kept for the next run", flush=True)

    def work(part: np.ndarray) -> None:
        flat, *each = given
        _views(
            flat,
            *(values[part[0] : part[-1] + 1] for values in each),
            params.blur_kernel_size,
            out[part[0] : part[-1] + 1],
        )

    if len(parts) == 1:
        work(parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(work, parts))
    return torch.from_numpy(out)


def ready() -> None:
    """Compile, or read what was compiled before: a run's first batch then does not wait for it."""
    numbers, shares, flags = np.int64, np.float32, np.bool_
    types = ((2, numbers), (4, numbers), (0, flags), (5, numbers), (5, shares), (0, shares), (0, flags))
    nothing = [np.zeros((0, width) if width else 0, dtype) for width, dtype in types]
    _views(np.zeros(1, np.uint8), *nothing, 3, np.zeros((0, 3, 8, 8), np.uint8))


@fast
def _views(pixels, where, boxes, flips, orders, strengths, sigmas, solarized, blur_kernel_size, out):  # type: ignore[no-untyped-def]
    size = out.shape[2]
    x = np.empty((3, size, size), np.float32)
    for b in range(len(out)):
        offset, width = where[b]
        _resize(pixels[offset:], width, boxes[b], flips[b], x)
        _color(x, orders[b], strengths[b])
        if sigmas[b] > 0:
            _blur(x, sigmas[b], blur_kernel_size)
        _write(x, solarized[b], out[b])


@fast
def _resize(pixels, stride, box, flip, x):  # type: ignore[no-untyped-def]
    """The box, antialiased with a triangle as wide as a step of the target (Pillow's bilinear): rows, then columns."""
    top, left, height, width = box
    size = x.shape[1]
    step = width / size
    reach = max(1.0, step)
    most = 2 * math.ceil(reach) + 1
    weights = np.zeros((size, most), np.float32)
    starts, counts = np.empty(size, np.int64), np.empty(size, np.int64)
    for i in range(size):
        center = ((size - 1 - i if flip else i) + 0.5) * step
        first, last = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), width)
        total = 0.0
        for j in range(first, last):
            total += max(0.0, 1.0 - abs(j + 0.5 - center) / reach)
        for j in range(first, last):
            weights[i, j - first] = max(0.0, 1.0 - abs(j + 0.5 - center) / reach) / total
        starts[i], counts[i] = first, last - first
    step = height / size
    reach = max(1.0, step)
    line = np.empty(3 * width, np.float32)
    for y in range(size):
        center = (y + 0.5) * step
        first, last = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), height)
        total = 0.0
        for j in range(first, last):
            total += max(0.0, 1.0 - abs(j + 0.5 - center) / reach)
        line[:] = 0
        for j in range(first, last):
            weight = np.float32(max(0.0, 1.0 - abs(j + 0.5 - center) / reach) / total)
            begin = ((top + j) * stride + left) * 3
            row = pixels[begin : begin + 3 * width]
            for k in range(3 * width):
                line[k] += weight * np.float32(row[k])
        for i in range(size):
            red, green, blue = np.float32(0), np.float32(0), np.float32(0)
            place = 3 * starts[i]
            for j in range(counts[i]):
                weight = weights[i, j]
                red += weight * line[place]
                green += weight * line[place + 1]
                blue += weight * line[place + 2]
                place += 3
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
    wide = np.empty(size + 2 * radius, np.float32)
    smooth = np.empty((size, size), np.float32)
    for c in range(3):
        for y in range(size):
            wide[radius : radius + size] = x[c, y]
            for i in range(radius):
                wide[i], wide[radius + size + i] = x[c, y, radius - i], x[c, y, size - 2 - i]
            line = smooth[y]
            line[:] = 0
            for t in range(taps):
                weight = weights[t]
                for i in range(size):
                    line[i] += weight * wide[i + t]
        for y in range(size):
            line = x[c, y]
            line[:] = 0
            for t in range(taps):
                k = abs(y + t - radius)
                source = smooth[2 * size - 2 - k if k >= size else k]
                weight = weights[t]
                for i in range(size):
                    line[i] += weight * source[i]


@fast
def _write(x, solarized, out):  # type: ignore[no-untyped-def]
    size = x.shape[1]
    for c in range(3):
        for y in range(size):
            for i in range(size):
                value = x[c, y, i]
                if solarized and value >= 128:
                    value = 255 - value
                out[c, y, i] = np.uint8(min(np.float32(255), max(np.float32(0), np.rint(value))))
