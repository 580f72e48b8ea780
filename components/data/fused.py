"""Renders views on the CPU, in one pass from packed pixels to a view.

Crop, antialiased resize, color, blur and solarize are those of `batched`, without a copy of the photos and without
rounding in between. The threads are our own; the loops are in `view_kernels`.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from components.data.view_params import ViewParams

if TYPE_CHECKING:
    from components.data.photos import Pixels

PHOTOS_PER_THREAD = 32  # with fewer, a thread takes longer to start than it saves


def render(pixels: Pixels, params: ViewParams) -> Tensor:
    """Returns uint8 [B, 3, S, S], rendered on as many threads as torch uses."""
    from components.data.view_kernels import render_photos  # numba takes half a second; many processes render nothing

    count = len(pixels.offsets)
    out = np.empty((count, 3, params.size, params.size), dtype=np.uint8)
    per_photo = (
        np.stack([pixels.offsets, pixels.shapes[:, 1]], 1).astype(np.int64),
        params.boxes.numpy(),
        params.flip.numpy(),
        params.order.numpy(),
        params.strengths.numpy(),
        params.sigma.numpy(),
        params.solarize.numpy(),
    )
    if not render_photos.signatures:
        start = time.monotonic()
        compile_kernels()
        if (seconds := time.monotonic() - start) > 2:
            print(f"views: compiled in {seconds:.0f} s, and kept for the next run", flush=True)

    def work(first: int, end: int) -> None:
        part = (values[first:end] for values in per_photo)
        render_photos(pixels.flat, *part, params.blur_kernel_size, out[first:end])

    threads = min(torch.get_num_threads(), max(1, count // PHOTOS_PER_THREAD))
    bounds = [count * thread // threads for thread in range(threads + 1)]
    if threads == 1:
        work(0, count)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, bounds[:-1], bounds[1:]))
    return torch.from_numpy(out)


def compile_kernels() -> None:
    """Compiles the loops, or reads them from numba's cache, by rendering a batch of no photos."""
    from components.data.view_kernels import render_photos

    integers, floats, flags = np.int64, np.float32, np.bool_
    types = ((2, integers), (4, integers), (0, flags), (5, integers), (5, floats), (0, floats), (0, flags))
    per_photo = [np.zeros((0, width) if width else 0, dtype) for width, dtype in types]
    render_photos(np.zeros(1, np.uint8), *per_photo, 3, np.zeros((0, 3, 8, 8), np.uint8))
