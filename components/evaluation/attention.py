"""Where in a photo a backbone looks, as a map of its places."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

from components.data.photos import Photos
from components.models.backbone import Backbone, Published

MAPS, LEAST = "maps.safetensors", 4
CLASS_TOKEN = "attention of the class token in the last block, mean over heads"
SIMILARITY = "similarity of each place's feature to the mean of all places"


@torch.no_grad()
def attention_maps(backbone: Backbone, pixels: Tensor) -> tuple[Tensor, str]:
    """Returns a map of each photo, float32 [B, h, w] from 0 (its least place) to 1 (its greatest), and what it shows.

    pixels: uint8 [B, 3, S, S]. It is the attention of the class token where the photo's feature is that token (as in
    DINO, figure 1, https://arxiv.org/abs/2104.14294); for other backbones, CNNs too, it is a similarity of features.
    """
    if not attends_by_class(backbone):
        tokens = backbone.tokens(pixels).float()  # [B, N, D]
        side = math.isqrt(tokens.shape[1])
        return similarity_maps(tokens.unflatten(1, (side, side))), SIMILARITY
    values = _class_attention(backbone, pixels)[:, backbone.prefix :]
    side = math.isqrt(values.shape[1])
    return _from_0_to_1(values.unflatten(1, (side, side))), CLASS_TOKEN


def attends_by_class(backbone: Backbone) -> bool:
    """Returns True if a photo's feature is, or holds, the class token, whose attention is then its map."""
    return bool(backbone.prefix) and backbone.pool in ("class", "class and mean")


def similarity_maps(features: Tensor) -> Tensor:
    """Returns how similar each place is to the mean of all of its photo, from 0 to 1: [B, h, w, D] -> [B, h, w]."""
    return _from_0_to_1(cosine_similarity(features, features.mean((1, 2), keepdim=True), dim=-1))


def _from_0_to_1(maps: Tensor) -> Tensor:
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def patch_colors(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Returns the features of places as colors, uint8 [B, h, w, 3]: their first three principal components.

    Places of the same color have similar features, in all photos alike (Oquab et al., DINOv2, figure 1,
    https://arxiv.org/abs/2304.07193). pixels: uint8 [B, 3, S, S].
    """
    tokens = backbone.tokens(pixels).float()  # [B, N, D]
    flat = tokens.flatten(0, 1)
    flat = flat - flat.mean(0)
    directions = torch.linalg.svd(flat, full_matrices=False).Vh[:3]  # [3, D], or as many as there are places
    values = pad(flat @ directions.T, (0, 3 - len(directions)))
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    colors = (255 * (values - low) / (high - low).clamp_min(1e-12)).clamp(0, 255).to(torch.uint8)
    side = math.isqrt(tokens.shape[1])
    return colors.view(len(pixels), side, side, 3)


def write_maps(backbone: Backbone, photos: Photos, rows: np.ndarray, file: Path) -> None:
    """Writes where in the photos of `rows` a backbone looks, and their places as colors, as safetensors.

    Nothing if it has fewer than LEAST × LEAST places, which show nothing.

    rows: int64 [N]; attention: float32 [N, h, w] from 0 to 1, what it is in the metadata under "shown"; colors: uint8
    [N, h, w, 3].
    """
    backbone.cpu().eval()
    pixels = photos.squares(rows, backbone.config.image_size, backbone.config.square)
    attention, kind = attention_maps(backbone, pixels)
    if attention.shape[-1] < LEAST:
        return
    tensors = {"rows": torch.from_numpy(rows), "attention": attention, "colors": patch_colors(backbone, pixels)}
    about = {"shown": kind, "square": backbone.config.square}
    save_file({name: x.contiguous() for name, x in tensors.items()}, file, about)


def _class_attention(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Returns the weights of all tokens in the class token's last attention, mean over heads: [B, tokens]."""
    model = backbone.trunk
    options = backbone.family.call_options if isinstance(backbone, Published) else {"interpolate_pos_encoding": True}
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # others do not return weights
    try:
        weights = model(backbone.normalize(pixels), output_attentions=True, **options).attentions[-1]
    finally:
        model.set_attn_implementation(before)
    return weights[:, :, 0].float().mean(1)
