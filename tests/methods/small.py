"""Every method of METHODS in a size for tests that go through the whole dict.

A method that SMALL does not name has every whole number above 8 among its settings reduced to 8.
"""

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from components.config import parse
from components.data.entries import DESCRIBE
from components.data.fields import make_batch
from components.data.photos import Photos
from components.methods import METHODS, Method
from components.models.backbone import Backbone, PublishedBackbone, ResNetBackbone, ViTBackbone, build
from tests.families import checkpoint

HEAD = {"hidden": 8, "bottleneck": 4, "prototypes": 6, "local_crops": 2}
SMALL: dict[str, dict[str, Any]] = {
    "dino": HEAD,
    "ibot": HEAD,
    "dinov2": {**HEAD, "patch_bottleneck": 4},
    "swav": {"hidden": 8, "dim": 4, "prototypes": 6, "local_crops": 2, "queue": 16, "queue_from": 0},
    "contextprediction": {"patch": 8, "gap": 1, "jitter": 1, "grids": 2, "smallest": 4, "hidden": 8},
    "jigsaw": {"cell": 10, "tile": 8, "orders": 10, "hidden": 4},
    "simclr": {"hidden": 8, "dim": 4},
    "moco": {"queue": 20, "dim": 4},
    "mocoscriptstyle": {"queue": 20, "dim": 4},
    "mocov3": {"hidden": 8, "dim": 4},
    "byol": {"hidden": 8, "dim": 4},
    "simsiam": {"dim": 8, "predictor_hidden": 4},
    "barlowtwins": {"dim": 8},
    "vicreg": {"dim": 8},
    "mae": {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2},
    "ijepa": {"targets": 3, "predictor_dim": 8, "predictor_depth": 1},
    "distill": {"teacher": {"from": str(checkpoint("vit", Path(tempfile.mkdtemp()))), "image_size": 24}, "queue": 16},
    # bytes as tokens, so that the texts of all photos have the same ones
    "clip": {"dim": 8, "text_width": 8, "text_depth": 1, "text_heads": 2, "context_length": 28, "vocabulary": 258},
    "lejepa": {
        "embedding": 8,
        "hidden": 8,
        "dim": 4,
        "slices": 8,
        "global_views": 2,
        "local_views": 1,
        "local_size": 8,
    },
}
SHAPES: dict[str, Any] = {
    "vit": ViTBackbone(image_size=16, patch_size=4, width=16, depth=1, heads=2),
    "resnet": ResNetBackbone(kind="resnet18", image_size=16),
}
SIZES = {"timm_wrapper": (16, 1), "dinov2": (28, 14), "dinov2_with_registers": (28, 14)}  # others: 16, patches of 4
BATCH = 8


def settings(name: str) -> dict[str, Any]:
    """Returns the settings of a method for tests."""
    if name in SMALL:
        return SMALL[name]
    defaults = METHODS[name].config().model_dump().items()
    return {key: 8 for key, value in defaults if type(value) is int and value > 8}


@cache
def stand_in() -> Photos:
    """Returns 128 black photos of ten classes with captions, from which a method can complete its settings."""
    folder, count = Path(tempfile.mkdtemp()), 128
    (folder / "pixels.bin").write_bytes(bytes(count * 3))
    np.savez(
        folder / "index.npz",
        offsets=3 * np.arange(count),
        shapes=np.ones((count, 2), np.int64),
        splits=np.zeros(count, np.int8),
        labels=np.arange(count) % 10,
        classes=np.array([str(label) for label in range(10)]),
    )
    captions = [f"a photo without any light, number {row}" for row in range(count)]
    questions = {"row": np.arange(count), "question": [DESCRIBE] * count, "answer": captions}
    pl.DataFrame(questions).write_parquet(folder / "questions.parquet")
    return Photos(folder)


def start(family: str) -> Backbone:
    """Returns a small published backbone as training goes on from it.

    STARTS may name a folder with its checkpoint: of several processes, transformers lets only the first write one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("STARTS", temporary)) / family
        if not folder.is_dir():
            checkpoint(family, folder)
        size, patch_size = SIZES.get(family, (16, 4))
        values = {"kind": "published", "from": str(folder), "image_size": size, "patch_size": patch_size}
        backbone = build(PublishedBackbone.model_validate(values))
    backbone.fixed_statistics = True
    torch.manual_seed(0)  # the same heads, whether the checkpoint was there or not
    return backbone


def make(name: str, shape: str) -> Method:
    """Returns the method on a new small backbone, always the same. Raises ValueError if it refuses the backbone.

    shape: one of SHAPES, or the family of a published backbone.
    """
    torch.manual_seed(0)
    recipe = METHODS[name]
    config = recipe.method.resolve(parse(recipe.config, settings(name), name), stand_in())
    return recipe.method(build(SHAPES[shape]) if shape in SHAPES else start(shape), config).train()


def batch(
    name: str, photos: Photos, epoch: int, first: int = 0, count: int = BATCH, size: int = 16
) -> list[torch.Tensor]:
    """Returns the method's batch of `count` training photos, from the `first` on, in views of `size` pixels."""
    recipe = METHODS[name]
    fields = recipe.method.views(parse(recipe.config, settings(name), name), size)
    return make_batch(photos, photos.rows("train")[first : first + count], fields, 0, epoch)
