"""A convolution of 3 × 3 on a CPU with a quarter of the products: Winograd's minimal filtering, F(4 × 4, 3 × 3).

Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, https://arxiv.org/abs/1509.09308: 4 × 4
places of the output, a tile, come from 6 × 6 of the input. In another basis of these 36 numbers the convolution is one
number times one, so for all tiles and channels it is 36 matrix products. Pictures go into that basis and come back by
loops that stay in the processor's cache, channels last. Rounding is about ten times that of the plain sum.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from components.models.winograd_loops import TILE, cut, join

AT_ONCE = 2**28  # bytes
TURN = Lock()  # numba's portable layer of threads aborts where two call it at once
FEW, LITTLE, NARROW = 32, 2**20, 64  # tiles, tiles × channels × channels, and channels: with less it was slower

# of input, kernel and output, in one dimension; no row nor column has more than five numbers that are not 0
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


def suits(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether `convolve` does what the layer does, and sooner. Measured in fp32 on AVX2."""
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
        and min(layer.in_channels, layer.out_channels) >= NARROW
        and tiles >= FEW
        and tiles * layer.in_channels * layer.out_channels >= LITTLE
    )


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """fp32 [B, C, H, W] and [K, C, 3, 3] -> [B, K, H, W], channels last; stride 1, a margin of one zero.

    Raises ValueError where there is nothing to convolve.
    """
    if not x.numel():
        raise ValueError(f"pictures of {list(x.shape)} have no places")
    return _Convolution.apply(x, weight)


class _Convolution(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        kernels, last = _cut(_last(weight), KERNEL), _last(x)  # [36, K, C], [B, H, W, C]
        out = torch.empty(len(x), len(weight), *x.shape[2:], memory_format=torch.channels_last)
        for part in _parts(x, weight):
            _join(torch.bmm(_cut(last[part], INPUT, 1), kernels.mT), OUTPUT, out[part].permute(0, 2, 3, 1))
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Each step of `forward` transposed; what went into the products is made anew and not kept."""
        x, weight = ctx.saved_tensors
        grad, last, laid = _last(grad), _last(x), _last(weight)
        kernels = _cut(laid, KERNEL)
        of_x = torch.zeros_like(x, memory_format=torch.channels_last) if ctx.needs_input_grad[0] else None
        of_kernels = torch.empty_like(kernels) if ctx.needs_input_grad[1] else None
        for part in _parts(x, weight):
            given = _cut(grad[part], OUTPUT.T)  # [36, tiles, K]
            if of_x is not None:
                _join(torch.bmm(given, kernels), INPUT.T, of_x[part].permute(0, 2, 3, 1), 1)
            if of_kernels is not None:
                of_kernels.baddbmm_(given.mT, _cut(last[part], INPUT, 1), beta=float(part.start > 0))
        if of_kernels is None:
            return of_x, None
        _join(of_kernels, KERNEL.T, of_weight := torch.empty_like(laid))
        return of_x, of_weight.permute(0, 3, 1, 2)


def _parts(x: Tensor, weight: Tensor) -> list[slice]:
    """So many pictures at once that what goes into the products and comes out takes AT_ONCE; one at least."""
    one = 36 * _tiles(x.shape[2]) * _tiles(x.shape[3]) * sum(weight.shape[:2]) * x.element_size()
    many = max(1, AT_ONCE // one)
    return [slice(first, first + many) for first in range(0, len(x), many)]


def _tiles(side: int) -> int:
    return -(-side // TILE)


def _last(x: Tensor) -> Tensor:
    return x.detach().permute(0, 2, 3, 1).contiguous()


def _cut(images: Tensor, basis: np.ndarray, margin: int = 0) -> Tensor:
    """[N, H, W, C] -> [36, tiles, C]: of each tile basis · pixels · basisᵀ. basis: [6, pixels a side]."""
    count, height, width, channels = images.shape
    out = images.new_empty(len(basis) ** 2, count, _tiles(height), _tiles(width) * channels)
    with TURN:
        cut(images.numpy(), *_sparse(basis), margin, out.numpy(), _threads(count))
    return out.view(len(out), -1, channels)


def _join(tiles: Tensor, basis: np.ndarray, out: Tensor, margin: int = 0) -> None:
    """[36, tiles, C] to out [N, H, W, C]: of each tile basis · tile · basisᵀ. basis: [pixels a side, 6].

    With a margin tiles overlap and are added to what is there.
    """
    count, height, width, channels = out.shape
    side = basis.shape[1]
    laid = tiles.view(side, side, count, _tiles(height), _tiles(width) * channels).numpy()
    with TURN:
        join(laid, *_sparse(basis), margin, out.numpy(), _threads(count))


def _threads(count: int) -> int:
    """As many as torch uses: with GNU OpenMP its own. Others would wait for a core, for torch's spin for a while."""
    torchs = torch.get_num_threads()
    threads = min(torchs, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(threads)  # the first time it starts as many as there are cores, and tells OpenMP so
    if torch.get_num_threads() != torchs:
        torch.set_num_threads(torchs)
    return min(threads, count)


def _sparse(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's numbers that are not 0, and their places, filled up to five."""
    factors, places = np.zeros((len(basis), 5), np.float32), np.zeros((len(basis), 5), np.int64)
    for row, numbers in enumerate(basis):
        (found,) = numbers.nonzero()
        factors[row, : len(found)], places[row, : len(found)] = numbers[found], found
        places[row, len(found) :] = found[0]
    return factors, places
