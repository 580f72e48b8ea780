"""Where in a photo a backbone looks, as a map of its places."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from components.models.backbone import Backbone, Published

CLASS_TOKEN = "attention of the class token in the last block, mean over heads"
SIMILARITY = "similarity of each place's feature to the mean of all places"


@torch.no_grad()
def attention_maps(backbone: Backbone, pixels: Tensor) -> tuple[Tensor, str]:
    """Returns a map of each photo, float32 [B, h, w] from 0 (its least place) to 1 (its greatest), and what it shows.

    pixels: uint8 [B, 3, S, S]. It is the attention of the class token where the photo's feature is that token (as in
    DINO, figure 1, https://arxiv.org/abs/2104.14294); for other backbones, CNNs too, it is a similarity of features.
    """
    if backbone.prefix and backbone.pool in ("class", "class and mean"):
        values, shown = _class_attention(backbone, pixels)[:, backbone.prefix :], CLASS_TOKEN
    else:
        tokens = backbone.tokens(pixels).float()  # [B, N, D]
        values, shown = cosine_similarity(tokens, tokens.mean(1, keepdim=True), dim=-1), SIMILARITY
    values = values - values.amin(1, keepdim=True)
    values = values / values.amax(1, keepdim=True).clamp_min(1e-12)
    side = math.isqrt(values.shape[1])
    return values.view(len(values), side, side), shown


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
