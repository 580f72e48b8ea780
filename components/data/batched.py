"""Renders views in plain torch, a whole batch at a time, on any device. Nothing here waits for the device.

A resize is two matrix products per image. Every color step is clamped to 0 … 255, as in torchvision and SimCLR.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.data.view_params import BRIGHTNESS, CONTRAST, GRAY, HUE, SATURATION, ViewParams
from components.machine import compiled

LUMA = (0.2989, 0.587, 0.114)  # as torchvision's rgb_to_grayscale


def render(images: Tensor, params: ViewParams) -> Tensor:
    """Returns uint8 [B, 3, S, S] on the device of `images` [B, 3, H, W], which may be padded below and right."""
    boxes, flip, order, strengths, sigma, solarize = (
        values.to(images.device, non_blocking=True)
        for values in (params.boxes, params.flip, params.order, params.strengths, params.sigma, params.solarize)
    )
    x = resize(images, boxes, flip, params.size)
    return (compiled(finish) if x.is_cuda else finish)(x, order, strengths, sigma, solarize, params.blur_kernel_size)


def finish(x: Tensor, order: Tensor, strengths: Tensor, sigma: Tensor, solarize: Tensor, kernel_size: int) -> Tensor:
    """Applies color, blur (none if kernel_size is 0) and solarize to x [B, 3, S, S], and rounds it to uint8."""
    x = color(x, order, strengths)
    if kernel_size:
        x = torch.where((sigma > 0)[:, None, None, None], blur(x, sigma.clamp_min(1e-3), kernel_size), x)
    x = torch.where(solarize[:, None, None, None] & (x >= 128), 255 - x, x)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def resize(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Resizes boxes [B, 4] of uint8 [B, 3, H, W] with Pillow's antialiased bilinear: float [B, 3, size, size]."""
    top, left, height, width = boxes.float().unbind(1)
    row_weights = _triangles(top, height, images.shape[2], size)  # [B, size, H]
    column_weights = _triangles(left, width, images.shape[3], size)
    column_weights = torch.where(flip[:, None, None], column_weights.flip(1), column_weights)
    return row_weights[:, None] @ images.float() @ column_weights[:, None].transpose(2, 3)


def _triangles(start: Tensor, length: Tensor, num_pixels: int, size: int) -> Tensor:
    """Returns the weight of each of `num_pixels` for each of `size` pixels: [B, size, num_pixels], 0 outside the box.

    start, length: of the box along this axis, [B].
    """
    step = (length / size)[:, None, None]
    reach = step.clamp_min(1)
    positions = torch.arange(num_pixels, device=start.device) + 0.5
    centers = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    in_box = (positions > start[:, None, None]) & (positions < (start + length)[:, None, None])
    weights = torch.where(in_box, (1 - (positions - centers).abs() / reach).clamp_min(0), 0.0)
    return weights / weights.sum(2, keepdim=True)


def color(x: Tensor, order: Tensor, strengths: Tensor) -> Tensor:
    """Applies the color steps in `order` [B, 5] with their `strengths` [B, 5]: float [B, 3, S, S] in 0 … 255 -> same.

    Each step is clamped, as in torchvision. One program serves every order: hue, contrast before and after it, the
    other steps between these; a step has factor 1 where it is not that photo's turn. Only contrast needs more than its
    own pixel, the mean of the view, so a compiler makes three kernels of it.
    """
    steps = torch.arange(order.shape[1], device=x.device)
    positions = (order[:, :, None] == steps).int().argmax(1)  # [B, 5]: the position of each step
    before_contrast, after_contrast = positions < positions[:, CONTRAST, None], positions > positions[:, CONTRAST, None]
    before_hue, after_hue = positions < positions[:, HUE, None], positions > positions[:, HUE, None]

    def factors(applies: Tensor) -> Tensor:
        return torch.where(applies, strengths, 1.0)[:, :, None, None, None]

    x = _blend(x, _luma(x), factors(positions == 0)[:, GRAY])
    x = _brightness_and_saturation(x, positions, factors(before_contrast & before_hue))
    x = _contrast(x, factors(before_hue))
    x = _brightness_and_saturation(x, positions, factors(after_contrast & before_hue))
    x = torch.where((strengths[:, HUE] != 0)[:, None, None, None], shift_hue(x, strengths[:, HUE]), x)
    x = _brightness_and_saturation(x, positions, factors(before_contrast & after_hue))
    x = _contrast(x, factors(after_hue))
    x = _brightness_and_saturation(x, positions, factors(after_contrast & after_hue))
    return _blend(x, _luma(x), factors(positions > 0)[:, GRAY])


def _brightness_and_saturation(x: Tensor, positions: Tensor, factors: Tensor) -> Tensor:
    """Both, in the order of their `positions` [B, 5]; factors: [B, 5, 1, 1, 1]."""
    brighter_first = (positions[:, BRIGHTNESS] < positions[:, SATURATION])[:, None, None, None]
    x = (torch.where(brighter_first, factors[:, BRIGHTNESS], 1.0) * x).clamp_(0, 255)
    x = _blend(x, _luma(x), factors[:, SATURATION])
    return (torch.where(brighter_first, 1.0, factors[:, BRIGHTNESS]) * x).clamp_(0, 255)


def _contrast(x: Tensor, factors: Tensor) -> Tensor:
    return _blend(x, _luma(x).mean((1, 2), keepdim=True), factors[:, CONTRAST])


def _blend(x: Tensor, gray: Tensor, factor: Tensor) -> Tensor:
    """Returns factor · x + (1 - factor) · gray, clamped to 0 … 255; gray: [B, S, S] or [B, 1, 1]."""
    return (factor * x).add_((1 - factor) * gray[:, None]).clamp_(0, 255)


def _luma(x: Tensor) -> Tensor:
    """Returns the gray image: [B, 3, …] -> [B, …]. A tensor of weights would have to be copied to the GPU first."""
    red, green, blue = x.unbind(1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotates the hue of HSV by `shift` turns [B]: float [B, 3, S, S] in 0 … 255, exact (not a rotation about gray)."""
    value, darkest = x.amax(1), x.amin(1)  # [B, S, S]
    chroma = value - darkest
    r, g, b = x.unbind(1)
    safe = chroma.clamp_min(1e-6)
    sector = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )  # in sixths of a turn
    sector = sector + 6 * shift[:, None, None]
    channels = []
    for offset in (5, 3, 1):  # f(n) = V - C max(0, min(k, 4 - k, 1)), k = (n + H) mod 6
        k = (sector + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)


def blur(x: Tensor, sigma: Tensor, blur_kernel_size: int) -> Tensor:
    """Gaussian blur, each image with its own `sigma` [B] in pixels; the border is reflected."""
    radius = blur_kernel_size // 2
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]  # [B, taps, 1, 1, 1]
    for dim, edges in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded, size = pad(x, edges, mode="reflect"), x.shape[dim]
        x = weights[:, 0] * padded.narrow(dim, 0, size)
        for tap in range(1, blur_kernel_size):
            x.addcmul_(weights[:, tap], padded.narrow(dim, tap, size))
    return x
