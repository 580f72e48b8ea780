"""Pairs of augmented views that several papers share."""

from __future__ import annotations

from components.config import Fraction, FractionRange, Strict
from components.data.augment import Jitter, View


class ViewPair(Strict):
    """Two views with different augmentations: the first is always blurred, only the second is ever solarized.

    Defaults: Grill et al., 2020 (BYOL), appendix B, table 6. MoCo v3, Barlow Twins and VICReg use the same.
    """

    crop: FractionRange = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    blur: tuple[Fraction, Fraction] = (1.0, 0.1)
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)

    def build(self, size: int) -> tuple[View, View]:
        first, second = (
            View(size, crop=self.crop, jitter=Jitter(*self.jitter, p=0.8), gray=0.2, blur=blur, solarize=solarize)
            for blur, solarize in zip(self.blur, self.solarize, strict=True)
        )
        return first, second


def moco_v2_view(size: int, crop: tuple[float, float], blur: float) -> View:
    """Returns the view of MoCo v2 (Chen et al., 2020b): half of SimCLR's color strength. SimSiam's too."""
    return View(size, crop=crop, jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), gray=0.2, blur=blur)
