"""Photos and texts as vectors of one space: a frozen backbone with a linear layer, and a text encoder trained to match.

LiT: Zhai et al., CVPR 2022, https://arxiv.org/abs/2111.07991. Sigmoid loss: Zhai et al., ICCV 2023,
https://arxiv.org/abs/2303.15343.
"""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from components.connector.towers import read_tower
from components.evaluation.scale import deviation
from components.models.backbone import Backbone, Published, ResNet, ViT
from components.models.resnet import SMALL_IMAGE
from components.training.objective import Objective

SCALE = 10.0  # of cosines, at the start (SigLIP, section 3.2)
Batch = tuple[Tensor, dict[str, Tensor], Tensor]


class DualEncoder(Objective):
    """An Objective on batches of features [B, D], tokens of texts [T, L], and which text belongs to which photo [B, T].

    Each text is in a batch once, however many of its photos have it, so that none is a negative of its own photo.
    """

    needs_full_batch = "each photo is compared with all texts of the batch"
    std: Tensor
    direction: Tensor

    def __init__(self, bank: Tensor, text_model: Any, dim: int, matching: float) -> None:
        """bank: features of two or more training photos [N, D]. matching: the fraction of pairs that match, 0 to 1."""
        super().__init__()
        std = deviation(bank)
        self.register_buffer("std", std)
        self.register_buffer("direction", normalize(bank.mean(0) / std, dim=0))
        self.text_model = text_model
        self.visual_projection = nn.Linear(bank.shape[1], dim, bias=False)
        self.text_projection = nn.Linear(text_model.config.hidden_size, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        # SigLIP's -10 is about the log odds of a match among its 32,768 texts. At most even odds, for a batch whose
        # photos all have the same text has no others
        matching = min(matching, 0.5)
        self.bias = nn.Parameter(torch.tensor(math.log(matching / (1 - matching))))

    def photos(self, features: Tensor) -> Tensor:
        """Returns unit vectors: [B, D] -> [B, dim].

        The features' mean, which all photos share, is projected out: the stock class has no bias to subtract it.
        """
        x = features / self.std
        x = x - (x @ self.direction)[:, None] * self.direction
        return normalize(self.visual_projection(x).float(), dim=1)

    def texts(self, tokens: dict[str, Tensor]) -> Tensor:
        """Returns unit vectors: int64 [T, L] -> [T, dim]."""
        return normalize(self.text_projection(self.text_model(**tokens).pooler_output).float(), dim=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features, tokens, matches = batch
        logits = self.log_scale.exp() * self.photos(features) @ self.texts(tokens).T + self.bias  # [B, T]
        loss = -logsigmoid(torch.where(matches, logits, -logits)).sum(1).mean()
        best = matches.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        return {"loss": loss, "accuracy": best, "scale": self.log_scale.exp(), "bias": self.bias}

    @torch.no_grad()
    def folded(self) -> Tensor:
        """Returns the weight of one linear layer on raw features [dim, D] that gives the same vectors as `photos`."""
        weight = self.visual_projection.weight
        return (weight - torch.outer(weight @ self.direction, self.direction)) / self.std


def pooling_problem(backbone: Backbone) -> str | None:
    """Returns why no stock class gives this backbone's feature as its pooled output, None if one does."""
    if isinstance(backbone, ResNet) and backbone.config.image_size <= SMALL_IMAGE:
        return (
            f"no class of transformers has the first layer of a ResNet for images of at most {SMALL_IMAGE} pixels; "
            "train it with a larger image_size, or choose another words.method"
        )
    if isinstance(backbone, ViT | Published) and backbone.pool not in ("class", "pooler"):
        return (
            f"the feature of this backbone is pooled as {backbone.pool!r}, and transformers' class pools its first "
            "token; choose another words.method"
        )
    return None


@torch.no_grad()
def stock_tower(backbone: Backbone, folder: Path) -> Any:
    """Returns transformers' class whose pooler_output is the feature of whole photos. folder: where it was loaded from.

    Raises ValueError where there is none.
    """
    if problem := pooling_problem(backbone):
        raise ValueError(problem)
    if isinstance(backbone, ResNet):
        tower = read_tower(folder)
        tower.config.hidden_size = backbone.dim
        return tower
    trunk = backbone.trunk.cpu()
    if not hasattr(trunk, "pooler") or trunk.pooler is not None:
        return trunk
    # a ViT was built without a pooler, since its first token is the feature: a pooler that changes nothing
    config = deepcopy(trunk.config)
    config.pooler_act, config.pooler_output_size = "linear", config.hidden_size
    tower = type(trunk)(config)
    torch.nn.init.eye_(tower.pooler.dense.weight)
    torch.nn.init.zeros_(tower.pooler.dense.bias)
    missing, unexpected = tower.load_state_dict(trunk.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("pooler.") for name in missing)
    return tower


@torch.no_grad()
def as_stock(encoder: DualEncoder, tower: Any) -> Any:
    """Returns the VisionTextDualEncoderModel that computes the same vectors, with the tower of `stock_tower`.

    Its logits lack the bias, which no order of photos or texts depends on; config.json has it as logit_bias.
    """
    tower.config._name_or_path = ""  # no path of this machine in the saved config
    configs = tower.config, encoder.text_model.config
    dim = len(encoder.text_projection.weight)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=dim)
    config.logit_bias = float(encoder.bias)
    model = VisionTextDualEncoderModel(config, tower, encoder.text_model)
    model.visual_projection.weight.copy_(encoder.folded())
    model.text_projection.weight.copy_(encoder.text_projection.weight)
    model.logit_scale.copy_(encoder.log_scale)
    return model.eval()
