"""The sampled parameters of one view of a batch: what the sampler fills in and both renderers read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY = range(5)  # the color steps, as `order` and `strengths` number them


@dataclass(frozen=True)
class ViewParams:
    """The parameters of one view of size × size pixels for each of B photos.

    A strength is a factor; for HUE it is a shift in turns of the color wheel. A step that is not applied has factor 1,
    or a shift of 0.
    """

    size: int
    blur_kernel_size: int  # in pixels, odd; 0 if no photo of the batch is ever blurred
    boxes: Tensor  # int64 [B, 4]: top, left, height, width
    flip: Tensor  # bool [B]
    order: Tensor  # int64 [B, 5]: the color steps in the order in which they are applied
    strengths: Tensor  # float32 [B, 5], indexed by color step
    sigma: Tensor  # float32 [B], in pixels; 0 for a photo that is not blurred
    solarize: Tensor  # bool [B]
