"""MAE: encode a quarter of the patches and reconstruct the pixels of the others.

He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022. https://arxiv.org/abs/2111.06377

Only visible patches go through the encoder, which is fast and keeps mask tokens out of it. A small decoder predicts the
pixels of the masked patches, normalized patch by patch (norm_pix); only these enter the loss.
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
from components.models.heads import Blocks, init_linear, sincos
from components.training.optim import AdamW, Cosine, Optimizer


class MAEConfig(MethodConfig):
    """Defaults: section 4 and table 8, for 800 epochs."""

    mask_ratio: float = Field(0.75, gt=0, lt=1)  # of the patches (figure 5)
    norm_pix: bool = True  # targets are normalized by each patch's mean and deviation (table 1d)
    decoder_dim: int = Field(512, ge=4)  # table 1b
    decoder_depth: int = Field(8, ge=1)  # table 1a
    decoder_heads: int = Field(16, ge=1)  # models_mae.py
    crop: FractionRange = (0.2, 1.0)  # main_pretrain.py; no augmentation but this and flip (table 1e)
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
        vit.pool = "mean"  # no loss trains the class token, except through the decoder
        if vit.origin is None:  # trained weights know their own positions
            vit.fix_positions()
        patches = vit.side**2
        self.num_visible = int(patches * (1 - config.mask_ratio))
        if not 0 < self.num_visible < patches:
            raise ValueError(
                f"mask_ratio {config.mask_ratio} of {patches} patches leaves {self.num_visible} visible; allowed: 1 to "
                f"{patches - 1}; try mask_ratio 0.5 or a smaller backbone.patch_size"
            )
        width = config.decoder_dim
        self.to_decoder = nn.Linear(vit.dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)  # three axes: weight decay skips vectors
        self.decoder = Blocks(width, config.decoder_depth, config.decoder_heads)
        self.to_pixels = nn.Linear(width, 3 * vit.config.patch_size**2)
        self.to_decoder.apply(init_linear)
        self.to_pixels.apply(init_linear)
        positions = torch.cat([torch.zeros(1, width), sincos(vit.side, width)])  # [1 + N, W]
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, draws = batch
        order = expand_draws(draws, len(self.positions) - 1).argsort(1)  # [B, N]
        visible, masked = order[:, : self.num_visible], order[:, self.num_visible :]
        predicted = self.decode(self.encode(pixels, visible), visible)  # [B, N, 3P²]
        error = (predicted - self.target(pixels)).square().mean(-1)  # [B, N]
        return {"loss": error.gather(1, masked).mean()}  # equally many patches of each photo

    def encode(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Returns the encoded class token and patches `visible` [B, K] of pixels [B, 3, S, S]: [B, 1 + K, D]."""
        x = self.backbone.embed(pixels)  # [B, 1 + N, D]
        index = with_class_token(visible)[:, :, None].expand(-1, -1, x.shape[-1])
        return self.backbone.encode(x.gather(1, index))

    def decode(self, encoded: Tensor, visible: Tensor) -> Tensor:
        """Returns the predicted pixels of all patches: encoded tokens [B, 1 + K, D] -> [B, N, 3P²]."""
        x = self.to_decoder(encoded)  # [B, 1 + K, W]
        index = with_class_token(visible)[:, :, None].expand_as(x)
        tokens = self.mask_token.to(x.dtype).expand(len(x), len(self.positions), -1).scatter(1, index, x)
        return self.to_pixels(self.decoder(tokens + self.positions))[:, 1:]

    def target(self, pixels: Tensor) -> Tensor:
        """Returns the pixels of each patch, by rows with the color last: [B, 3, S, S] -> [B, N, 3P²]."""
        n, p = self.backbone.side, self.backbone.config.patch_size
        x = self.backbone.normalize(pixels).unflatten(3, (n, p)).unflatten(2, (n, p))  # [B, 3, n, P, n, P]
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if not self.config.norm_pix:
            return x
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()

    def keep(self) -> Any:
        return self.backbone


def with_class_token(patches: Tensor) -> Tensor:
    """Returns indices into the token sequence, class token first: patch numbers [B, K] -> [B, 1 + K]."""
    return torch.cat([torch.zeros_like(patches[:, :1]), patches + 1], dim=1)
