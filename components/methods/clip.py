"""CLIP: match photos with their captions, by a backbone and a text transformer that are trained together.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
https://arxiv.org/abs/2103.00020. The text transformer is transformers' CLIPTextModel, with random weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field as Setting
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.models.clip import CLIPTextConfig, CLIPTextModel

from components import ranks
from components.config import Fraction, FractionRange
from components.data.augment import Jitter, View
from components.data.photos import Photos
from components.data.tokens import END, FEWEST, START, Tokens, tokenized_texts
from components.methods.losses import l2_normalize, without_autocast
from components.methods.method import Batch, Method, MethodConfig
from components.models.backbone import Backbone
from components.training.optim import AdamW, Cosine, Optimizer

LARGEST_SCALE = 100.0  # of cosines (section 2.5)


class CLIPConfig(MethodConfig):
    """Defaults: sections 2.4 and 2.5, tables 18 and 20 (ViT-B/32)."""

    dim: int = Setting(512, ge=1)  # of the space of photos and texts
    text_width: int = Setting(512, ge=1)
    text_depth: int = Setting(12, ge=1)
    text_heads: int = Setting(8, ge=1)
    context_length: int = Setting(77, ge=3)  # tokens of a text, at most; longer ones are cut
    vocabulary: int = Setting(49408, ge=FEWEST)  # tokens, at most
    class_names: bool = True  # the name of its class stands for a photo's missing caption
    temperature: float = Setting(0.07, ge=1 / LARGEST_SCALE)  # at the start; then it is learned
    crop: FractionRange = (0.9, 1.0)
    flip: Fraction = 0.0  # a caption may say left and right
    color_strength: float = Setting(0.0, ge=0)  # of SimCLR's jitter, for data small enough to be memorized
    optimizer: Optimizer = AdamW(  # 5e-4 for 32,768; 2,000 of 390,625 steps
        lr=4.4e-5, scaling="sqrt", weight_decay=0.2, betas=(0.9, 0.98), schedule=Cosine(warmup=0.005)
    )


class CLIP(Method):
    needs_full_batch = "the other photos and texts of the batch are the negatives"

    @staticmethod
    def views(config: CLIPConfig, image_size: int) -> tuple[View, Tokens]:
        s = config.color_strength
        jitter = Jitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8) if s else None
        view = View(image_size, crop=config.crop, flip=config.flip, jitter=jitter)
        return view, Tokens(config.context_length, config.vocabulary, config.class_names)

    @staticmethod
    def resolve(config: CLIPConfig, photos: Photos) -> CLIPConfig:
        """Returns the settings with the vocabulary that the texts have, and the length of the longest of them."""
        texts = tokenized_texts(photos.folder, config.context_length, config.vocabulary, class_names=config.class_names)
        if len(texts.tokens) < 2:
            problem = "have one text, all the same" if len(texts.tokens) else "have no text"
            raise ValueError(
                f"clip needs captions or labels: the {len(photos.rows('train'))} training photos {problem}; try a "
                "captions.csv (columns path and caption) in the folder of photos, or one folder a class and "
                "class_names: true, and prepare them again; or choose a method without labels"
            )
        length = min(config.context_length, texts.longest)
        return config.model_copy(update={"vocabulary": texts.vocabulary, "context_length": length})

    def __init__(self, backbone: Backbone, config: CLIPConfig) -> None:
        super().__init__(config)
        if config.text_width % config.text_heads:
            raise ValueError(
                f"text_width {config.text_width} is not a multiple of text_heads {config.text_heads}; "
                f"try text_width: {-(-config.text_width // config.text_heads) * config.text_heads}"
            )
        self.backbone = backbone
        self.text_model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.text_width,
                intermediate_size=4 * config.text_width,
                num_hidden_layers=config.text_depth,
                num_attention_heads=config.text_heads,
                max_position_embeddings=config.context_length,
                bos_token_id=START,
                eos_token_id=END,
                pad_token_id=END,
            )
        )
        blocks: Any = self.text_model.encoder.layers
        for block in blocks:
            block.compiled_whole = True  # see machine.compile_blocks
        self.visual_projection = nn.Linear(backbone.dim, config.dim, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.dim, bias=False)
        for layer in (self.visual_projection, self.text_projection):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)  # model.py of the official code
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels, tokens = batch
        photos = self.visual_projection(self.backbone(pixels))  # [B, dim]
        texts = self.text_projection(self.text_model(input_ids=tokens).pooler_output)  # [B, dim]
        scale = self.log_scale.exp()
        loss, accuracy = symmetric_cross_entropy(photos, texts, scale)
        return {"loss": loss, "accuracy": accuracy, "scale": scale}

    @torch.no_grad()
    def after_step(self) -> None:
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def keep(self) -> Backbone:
        return self.backbone


@without_autocast
def symmetric_cross_entropy(photos: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss, and how often no text is nearer to a photo than its own: ([], []).

    photos, texts: [B, D] on each rank; scale of the cosines: []. Figure 3 of the paper, over the pairs of all ranks.

    Photos with equal texts need no care. Such texts have equal vectors at every step, so their logits are equal, and
    loss and gradients are those of a target that is spread over all of them.
    """
    photos, texts = l2_normalize(photos), l2_normalize(texts)
    per_photo, per_text = scale * photos @ ranks.gather(texts).T, scale * texts @ ranks.gather(photos).T  # [B, W·B]
    targets = torch.arange(len(photos), device=photos.device) + ranks.rank() * len(photos)
    loss = (cross_entropy(per_photo, targets) + cross_entropy(per_text, targets)) / 2
    logits = per_photo.detach()
    # equal logits may differ by rounding
    nearest = logits.gather(1, targets[:, None]) >= logits.amax(1, keepdim=True) - 1e-3
    return loss, nearest.float().mean()
