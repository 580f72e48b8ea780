"""Every method of METHODS in a size for tests: one place for all tests that go through the whole dict."""

from typing import Any

import torch

from components.config import parse
from components.data.fields import make_batch
from components.data.photos import Photos
from components.methods import METHODS, Method
from components.models.backbone import ResNetBackbone, ViTBackbone, build

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
    "supervised": {"classes": 10},
    "mae": {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2},
    "ijepa": {"targets": 3, "predictor_dim": 8, "predictor_depth": 1},
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
BATCH = 8


def make(name: str, shape: str) -> Method:
    """The method on a new small backbone, the same at every call. Raises ValueError if it refuses such a backbone."""
    torch.manual_seed(0)
    recipe = METHODS[name]
    return recipe.method(build(SHAPES[shape]), parse(recipe.config, SMALL.get(name, {}), name)).train()


def batch(name: str, photos: Photos, epoch: int, first: int = 0, count: int = BATCH) -> list[torch.Tensor]:
    """`count` pictures from the `first` on, as the method looks at them."""
    recipe = METHODS[name]
    views = recipe.method.views(parse(recipe.config, SMALL.get(name, {}), name), SHAPES["vit"].image_size)
    return make_batch(photos, photos.rows("train")[first : first + count], views, 0, epoch)
