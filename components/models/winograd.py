"""A 3 × 3 convolution on a CPU with a quarter of the products: Winograd's minimal filtering, F(4 × 4, 3 × 3).

Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, https://arxiv.org/abs/1509.09308: a tile of
4 × 4 output pixels depends on 6 × 6 input pixels. In another basis the convolution multiplies these 36 numbers one by
one, so for all tiles and channels it is 36 matrix products. Compiled loops transform images to that basis and
back, channels last, within the processor's cache. Rounding errors are about ten times those of the direct sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from components.measurement import best_seconds, measured, measuring, setting

WINOGRAD = "SELFSIGHT_WINOGRAD"  # auto, on or off
MIN_SPEEDUP = 1.1  # below, it is not worth its rounding
CHUNK_BYTES = 2**28
NUMBA_LOCK = Lock()  # numba's portable threading layer aborts if two threads call it at once
MIN_TILES, MIN_PRODUCTS, MIN_CHANNELS = 32, 2**20, 64  # products: tiles × channels × channels; below, it was slower

# Transforms of input, kernel and output in one dimension. No row or column has more than five nonzero numbers.
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float32,
)
OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32)


def enabled() -> bool:
    """Returns True if the filtering is to be used on this CPU, in fp32.

    SELFSIGHT_WINOGRAD decides if it is set. Otherwise a measurement does, kept by `measurement.measured`: it
    wins 1.6 to 1.9 times on AVX2, and nothing on AVX-512, where torch's own convolutions are faster.
    """
    choice = setting(WINOGRAD, ("auto", "on", "off"))
    return choice == "on" if choice != "auto" else measured("winograd", speedup) >= MIN_SPEEDUP


def speedup() -> float:
    """Returns how many times as fast as torch's this convolution trains three layers of a ResNet-18 on this CPU."""
    with measuring():
        torch_seconds = our_seconds = 0.0
        for images, channels, side in ((16, 64, 32), (16, 128, 16), (32, 256, 8)):
            x = torch.randn(images, channels, side, side, requires_grad=True)
            weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
            grad = torch.randn_like(x)
            of_torch, of_ours = best_seconds(
                partial(_train, partial(conv2d, padding=1), x, weight, grad),
                partial(_train, convolve, x, weight, grad),
                rounds=3,
            )
            torch_seconds, our_seconds = torch_seconds + of_torch, our_seconds + of_ours
    return torch_seconds / our_seconds


def _train(convolution: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, grad: Tensor) -> None:
    torch.autograd.grad(convolution(x, weight), (x, weight), grad)


def applies(layer: nn.Conv2d, x: Tensor) -> bool:
    """Returns True if `convolve` computes what the layer does, and is faster. The limits are of AVX2, in fp32."""
    tiles = len(x) * _tiles(x.shape[-2]) * _tiles(x.shape[-1])
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and not torch.compiler.is_compiling()
        and x.dtype == layer.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and layer.groups == 1
        and layer.bias is None
        and layer.padding_mode == "zeros"
        and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
        and tiles >= MIN_TILES
        and tiles * layer.in_channels * layer.out_channels >= MIN_PRODUCTS
        and enabled()
    )


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """fp32 [B, C, H, W] and [K, C, 3, 3] -> [B, K, H, W], channels last; stride 1, zero padding of 1.

    Raises ValueError if x is empty.
    """
    if not x.numel():
        raise ValueError(f"images of shape {list(x.shape)} have no pixels; allowed: at least one image of one pixel")
    return _Convolution.apply(x, weight)


class _Convolution(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        kernels, pixels = _to_tiles(_channels_last(weight), KERNEL), _channels_last(x)  # [36, K, C], [B, H, W, C]
        out = torch.empty(len(x), len(weight), *x.shape[2:], memory_format=torch.channels_last)
        for chunk in _chunks(x, weight):
            products = torch.bmm(_to_tiles(pixels[chunk], INPUT, 1), kernels.mT)  # [36, tiles, K]
            _from_tiles(products, OUTPUT, out[chunk].permute(0, 2, 3, 1))
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Each step of `forward` transposed. The factors of the products are computed again, not kept."""
        x, weight = ctx.saved_tensors
        grad, pixels, weight = _channels_last(grad), _channels_last(x), _channels_last(weight)
        kernels = _to_tiles(weight, KERNEL)
        x_grad = torch.zeros_like(x, memory_format=torch.channels_last) if ctx.needs_input_grad[0] else None
        kernels_grad = torch.empty_like(kernels) if ctx.needs_input_grad[1] else None
        for chunk in _chunks(x, ctx.saved_tensors[1]):
            tiles_grad = _to_tiles(grad[chunk], OUTPUT.T)  # [36, tiles, K]
            if x_grad is not None:
                _from_tiles(torch.bmm(tiles_grad, kernels), INPUT.T, x_grad[chunk].permute(0, 2, 3, 1), 1)
            if kernels_grad is not None:
                kernels_grad.baddbmm_(tiles_grad.mT, _to_tiles(pixels[chunk], INPUT, 1), beta=float(chunk.start > 0))
        if kernels_grad is None:
            return x_grad, None
        _from_tiles(kernels_grad, KERNEL.T, weight_grad := torch.empty_like(weight))
        return x_grad, weight_grad.permute(0, 3, 1, 2)


def _chunks(x: Tensor, weight: Tensor) -> list[slice]:
    """Returns slices of the batch: as many images as need CHUNK_BYTES for factors and products, at least one."""
    per_image = 36 * _tiles(x.shape[2]) * _tiles(x.shape[3]) * sum(weight.shape[:2]) * x.element_size()
    size = max(1, CHUNK_BYTES // per_image)
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _tiles(side: int) -> int:
    return -(-side // len(OUTPUT))


def _channels_last(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C], contiguous and without gradient."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


def _to_tiles(images: Tensor, basis: np.ndarray, padding: int = 0) -> Tensor:
    """[N, H, W, C] -> [36, tiles, C]: of each tile basis · pixels · basisᵀ. basis: [6, pixels a side]."""
    count, height, width, channels = images.shape
    from components.models.winograd_loops import to_tiles  # numba takes half a second, and most processes need none

    out = images.new_empty(len(basis) ** 2, count, _tiles(height), _tiles(width) * channels)
    with NUMBA_LOCK:
        to_tiles(images.numpy(), *_sparse(basis), padding, out.numpy(), _threads(count))
    return out.view(len(out), -1, channels)


def _from_tiles(tiles: Tensor, basis: np.ndarray, out: Tensor, padding: int = 0) -> None:
    """Writes [36, tiles, C] to out [N, H, W, C]: of each tile basis · tile · basisᵀ. basis: [pixels a side, 6].

    With padding the tiles overlap, and their pixels are added to those of `out`.
    """
    from components.models.winograd_loops import from_tiles

    count, height, width, channels = out.shape
    side = basis.shape[1]
    grid = tiles.view(side, side, count, _tiles(height), _tiles(width) * channels).numpy()
    with NUMBA_LOCK:
        from_tiles(grid, *_sparse(basis), padding, out.numpy(), _threads(count))


def _threads(count: int) -> int:
    """Returns how many threads share `count` images: at most torch's number, for with GNU OpenMP they are torch's own.

    More would wait for a core while torch's threads spin.
    """
    import numba

    torch_threads = torch.get_num_threads()
    threads = min(torch_threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(threads)  # its first call starts a thread for each core, and sets OpenMP's number to that
    if torch.get_num_threads() != torch_threads:
        torch.set_num_threads(torch_threads)
    return min(threads, count)


def _sparse(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each row's nonzero factors and their columns, both [rows, 5], filled with zeros and the first column."""
    factors, columns = np.zeros((len(basis), 5), np.float32), np.zeros((len(basis), 5), np.int64)
    for index, row in enumerate(basis):
        (nonzero,) = row.nonzero()
        factors[index, : len(nonzero)], columns[index, : len(nonzero)] = row[nonzero], nonzero
        columns[index, len(nonzero) :] = nonzero[0]
    return factors, columns
