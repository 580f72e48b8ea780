"""MAE: see a quarter of the patches, paint the rest.

He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022. https://arxiv.org/abs/2111.06377

Only the patches that are seen go through the encoder, so that it is fast and never meets a mask token; a light decoder
paints the others, each in the contrast of its own patch (norm_pix), and only these are counted.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import FractionRange
from components.data.augment import View
from components.data.fields import Draws
from components.data.randomness import expand_draws
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone, patches_of
from components.models.heads import Blocks, plain_start, sincos
from components.training.optim import AdamW, Cosine, Optimizer


class MAEConfig(MethodConfig):
    """Defaults: section 4 and table 8, for 800 epochs."""

    mask_ratio: float = Field(0.75, gt=0, lt=1)  # of the patches (figure 5)
    norm_pix: bool = True  # each patch's pixels in its own mean and deviation (table 1d)
    decoder_dim: int = Field(512, ge=4)  # table 1b
    decoder_depth: int = Field(8, ge=1)  # table 1a
    decoder_heads: int = Field(16, ge=1)  # models_mae.py
    crop: FractionRange = (0.2, 1.0)  # main_pretrain.py; and flip, nothing else (table 1e)
    optimizer: Optimizer = AdamW(
        lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=Cosine(warmup=0.05)
    )  # warm-up: 40 of 800 epochs


class MAE(Method):
    positions: Tensor

    @staticmethod
    def views(config: MAEConfig, image_size: int) -> tuple[View, Draws]:
        return View(image_size, crop=config.crop), Draws(2)

    def __init__(self, backbone: Backbone, config: MAEConfig) -> None:
        super().__init__(config)
        self.backbone = vit = patches_of(backbone, "mae")
        vit.pool = "mean"  # nothing but the decoder reads the class token
        vit.fix_positions()
        patches = vit.side**2
        self.seen = int(patches * (1 - config.mask_ratio))
        if not 0 < self.seen < patches:
            raise ValueError(
                f"mask_ratio {config.mask_ratio} of {patches} patches leaves {self.seen} to see; allowed: 1 to "
                f"{patches - 1}; try mask_ratio 0.5 or a smaller backbone.patch_size"
            )
        width = config.decoder_dim
        self.narrow = nn.Linear(vit.dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)  # three axes: weight decay skips vectors
        self.decoder = Blocks(width, config.decoder_depth, config.decoder_heads)
        self.paint = nn.Linear(width, 3 * vit.config.patch_size**2)
        self.narrow.apply(plain_start)
        self.paint.apply(plain_start)
        positions = torch.cat([torch.zeros(1, width), sincos(vit.side, width)])  # [1 + N, W]
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, draws = batch
        order = expand_draws(draws, len(self.positions) - 1).argsort(1)  # [B, N]
        seen, hidden = order[:, : self.seen], order[:, self.seen :]
        painted = self.decode(self.encode(pixels, seen), seen)  # [B, N, 3P²]
        error = (painted - self.target(pixels)).square().mean(-1)  # [B, N]
        return {"loss": error.gather(1, hidden).mean()}  # of as many patches in each picture

    def encode(self, pixels: Tensor, seen: Tensor) -> Tensor:
        """The class token and the patches numbered `seen` [B, K], of pixels [B, 3, S, S]: [B, 1 + K, D]."""
        x = self.backbone.embed(pixels)  # [B, 1 + N, D]
        places = with_class(seen)[:, :, None].expand(-1, -1, x.shape[-1])
        return self.backbone.encode(x.gather(1, places))

    def decode(self, encoded: Tensor, seen: Tensor) -> Tensor:
        """All patches painted, from the encoded few: [B, 1 + K, D] -> [B, N, 3P²]."""
        x = self.narrow(encoded)  # [B, 1 + K, W]
        places = with_class(seen)[:, :, None].expand_as(x)
        whole = self.mask_token.to(x.dtype).expand(len(x), len(self.positions), -1).scatter(1, places, x)
        return self.paint(self.decoder(whole + self.positions))[:, 1:]

    def target(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, 3P²], each patch in its own contrast, row by row, the color fastest."""
        n, p = self.backbone.side, self.backbone.config.patch_size
        x = self.backbone.normalize(pixels).unflatten(3, (n, p)).unflatten(2, (n, p))  # [B, 3, n, P, n, P]
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if not self.config.norm_pix:
            return x
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()

    def keep(self) -> Any:
        return self.backbone


def with_class(patches: Tensor) -> Tensor:
    """Numbers of patches [B, K] -> places in a sequence that begins with the class token, it first: [B, 1 + K]."""
    return torch.cat([torch.zeros_like(patches[:, :1]), patches + 1], dim=1)
