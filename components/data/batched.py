"""Views in plain torch, a whole batch at a time, on any device: a resize is two matrix products a picture.

Brightness, contrast, saturation and gray are affine in RGB, so any order of them is one 3 × 4 matrix a picture; only
hue is not, so what comes before it and what comes after it are two such matrices. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.data.view_params import HUE, ViewParams
from components.machine import compiled

LUMA = (0.2989, 0.587, 0.114)  # as torchvision's rgb_to_grayscale


def render(images: Tensor, params: ViewParams) -> Tensor:
    """uint8 [B, 3, S, S] on the device of `images` [B, 3, H, W], which may be filled up with zeros below and right."""
    boxes, flip, order, strengths, sigma, solarize = (
        values.to(images.device, non_blocking=True)
        for values in (params.boxes, params.flip, params.order, params.strengths, params.sigma, params.solarize)
    )
    x = resize(images, boxes, flip, params.size)
    return (compiled(finish) if x.is_cuda else finish)(x, order, strengths, sigma, solarize, params.blur_kernel_size)


def finish(x: Tensor, order: Tensor, strengths: Tensor, sigma: Tensor, solarize: Tensor, kernel_size: int) -> Tensor:
    """All that follows the resize, a pixel at a time but for the blur; 0 taps: none is blurred."""
    x = color(x, order, strengths)
    if kernel_size:
        x = torch.where((sigma > 0)[:, None, None, None], blur(x, sigma.clamp_min(1e-3), kernel_size), x)
    x = torch.where(solarize[:, None, None, None] & (x >= 128), 255 - x, x)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def resize(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Boxes [B, 4] of uint8 [B, 3, H, W], antialiased with a triangle (Pillow's bilinear): float [B, 3, size, size]."""
    top, left, height, width = boxes.float().unbind(1)
    down = _triangles(top, height, images.shape[2], size)  # [B, size, H]
    across = _triangles(left, width, images.shape[3], size)
    across = torch.where(flip[:, None, None], across.flip(1), across)
    return down[:, None] @ images.float() @ across[:, None].transpose(2, 3)


def _triangles(start: Tensor, length: Tensor, whole: int, size: int) -> Tensor:
    """Weights of `whole` pixels in each of `size`: [B, size, whole], 0 outside of start … start + length."""
    step = (length / size)[:, None, None]
    reach = step.clamp_min(1)
    places = torch.arange(whole, device=start.device) + 0.5
    centers = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    inside = (places > start[:, None, None]) & (places < (start + length)[:, None, None])
    weights = torch.where(inside, (1 - (places - centers).abs() / reach).clamp_min(0), 0.0)
    return weights / weights.sum(2, keepdim=True)


def color(x: Tensor, order: Tensor, strengths: Tensor) -> Tensor:
    """float [B, 3, S, S] in 0 … 255, through the steps in `order` [B, 5] with their `strengths` [B, 5]."""
    hue_at = (order == HUE).int().argmax(1)
    steps = [(order[:, k], strengths.gather(1, order[:, k : k + 1])[:, 0]) for k in range(order.shape[1])]
    x = affine(x, [(kind, factor, hue_at > k) for k, (kind, factor) in enumerate(steps)])
    shift = strengths[:, HUE]
    x = torch.where((shift != 0)[:, None, None, None], turn_hue(x, shift), x)
    return affine(x, [(kind, factor, hue_at < k) for k, (kind, factor) in enumerate(steps)])


def affine(x: Tensor, steps: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Brightness (0), contrast (1), saturation (2) and gray (4) as one matrix a picture, clamped once at the end.

    steps: (kind [B], factor [B], taken [B]) in order. Contrast's gray mean is a linear function of the channel means.
    """
    means = x.mean((2, 3))  # [B, 3]
    matrix = torch.eye(3, 4, device=x.device).repeat(len(x), 1, 1)
    for kind, factor, taken in steps:
        now = (matrix[:, :, :3] @ means[:, :, None])[:, :, 0] + matrix[:, :, 3]  # channel means so far [B, 3]
        f = factor[:, None, None]
        bright = f * matrix
        contrast = f * matrix
        contrast[:, :, 3] += (1 - factor)[:, None] * _luma(now)[:, None]
        saturated = f * matrix + (1 - f) * _luma(matrix)[:, None]
        for chosen, new in ((kind == 0, bright), (kind == 1, contrast), ((kind == 2) | (kind == 4), saturated)):
            matrix = torch.where((taken & chosen)[:, None, None], new, matrix)
    flat = torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], x.flatten(2))
    return flat.view_as(x).clamp_(0, 255)


def _luma(x: Tensor) -> Tensor:
    """[B, 3, …] -> [B, …]. Of numbers and not of a tensor, whose way to a GPU would be waited for."""
    red, green, blue = x.unbind(1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of HSV by `shift` turns [B]: float [B, 3, S, S] in 0 … 255, exact (not a rotation about gray)."""
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
    """Gaussian, separable, each picture with its own `sigma` [B] in pixels; `taps` taps, reflected at the border."""
    radius = blur_kernel_size // 2
    places = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (places / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]  # [B, taps, 1, 1, 1]
    for dim, edges in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        wide, size = pad(x, edges, mode="reflect"), x.shape[dim]
        x = weights[:, 0] * wide.narrow(dim, 0, size)
        for tap in range(1, blur_kernel_size):
            x.addcmul_(weights[:, tap], wide.narrow(dim, tap, size))
    return x
