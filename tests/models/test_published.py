import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoImageProcessor, AutoModel

from components.methods import METHODS
from components.models import published
from components.models.backbone import Backbone, PublishedBackbone, ResNetBackbone, ViT, build, load
from components.models.families import FAMILIES
from components.models.origin import Origin
from tests.families import MAKERS, checkpoint
from tests.tolerances import LAYERS_FLOAT32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: checkpoint(family, tmp_path_factory.mktemp(family)) for family in MAKERS}


@pytest.fixture(params=MAKERS)
def family(request: Any) -> str:
    return str(request.param)


def start(folder: Path, **settings: Any) -> Backbone:
    return build(PublishedBackbone(**published.resolve({"kind": "published", "from": str(folder), **settings}))).eval()


def stock_features(name: str, folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Returns the feature of whole images by transformers alone, from normalized pixels [B, 3, S, S]."""
    family = FAMILIES.get(name)
    model: Any = (family.transformer if family else AutoModel).from_pretrained(folder).eval()
    flexible = {} if name.startswith(("dino", "timm")) else {"interpolate_pos_encoding": True}
    out = model(pixels, **flexible)
    if name in ("vit_mae", "ijepa"):
        return out.last_hidden_state[:, 1 if name == "vit_mae" else 0 :].mean(1)
    return out.last_hidden_state[:, 0] if name in ("vit", "deit") else out.pooler_output


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 2])
def test_features_equal_the_stock_models_on_the_stock_processors_pixels(folders, family, scale, tmp_path):
    size = published.resolve({"from": str(folders[family])})["image_size"] * scale
    backbone = start(folders[family], image_size=size)
    photos = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone.save(tmp_path)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(list(photos), return_tensors="pt")["pixel_values"]
    assert pixels.shape[-1] == size
    expected = stock_features(family, folders[family], pixels)
    assert torch.allclose(backbone(photos), expected, atol=LAYERS_FLOAT32)
    reloaded = load(tmp_path).eval()
    assert torch.equal(reloaded(photos), backbone(photos))
    stock = AutoModel.from_pretrained(tmp_path).eval()(pixels).last_hidden_state  # at its own size, with no option
    tokens = (
        stock.flatten(2).transpose(1, 2)
        if stock.ndim == 4
        else stock[:, stock.shape[1] - backbone.tokens(photos).shape[1] :]
    )
    assert torch.allclose(backbone.tokens(photos), tokens, atol=LAYERS_FLOAT32)


@torch.no_grad()
def test_blocks_end_with_the_feature_and_an_untrained_copy_differs(folders, family):
    backbone = start(folders[family])
    size = backbone.config.image_size
    photos = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blocks = backbone.blocks(photos)
    assert len(blocks) >= 2
    assert torch.allclose(blocks[-1], backbone(photos), atol=LAYERS_FLOAT32)
    untrained = backbone.untrained().eval()
    assert untrained(photos).shape == backbone(photos).shape
    assert not torch.allclose(untrained(photos), backbone(photos), atol=LAYERS_FLOAT32)


def test_nothing_is_random_in_train_mode(folders, family):
    backbone = start(folders[family]).train()
    if backbone.has_batch_norm:
        pytest.skip("batch norm follows the batch in train mode")
    size = backbone.config.image_size
    photos = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(backbone(photos), backbone(photos))
        assert torch.allclose(backbone(photos), backbone.eval()(photos), atol=LAYERS_FLOAT32)


def test_every_trained_parameter_has_a_layer_and_lower_layers_come_first(folders, family):
    backbone = start(folders[family])
    layers = backbone.layers()
    assert set(layers) == {name for name, _ in backbone.named_parameters()}
    first = next(name for name, p in backbone.named_parameters() if p.ndim == 4)
    assert layers[first] == 0
    assert max(layers.values()) >= 2


def test_the_origin_travels_with_the_weights(folders, tmp_path):
    card = "---\nlicense: apache-2.0\ndatasets:\n- imagenet-1k\n---\n# A model\n"
    (folders["dinov2"] / "README.md").write_text(card, encoding="utf-8")
    start(folders["dinov2"]).save(tmp_path)
    origin = load(tmp_path).origin
    assert origin == Origin(str(folders["dinov2"]), "dinov2", None, "apache-2.0", "imagenet-1k")


def test_ones_own_backbones_are_starts_too(tmp_path):
    for shape in (ResNetBackbone(kind="resnet18", image_size=32),):
        torch.manual_seed(1)
        own = build(shape).eval()
        own.save(tmp_path / shape.kind)
        again = start(tmp_path / shape.kind)
        photos = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        assert torch.equal(again(photos), own(photos))
    with pytest.raises(ValueError, match="another first layer"):
        start(tmp_path / "resnet18", image_size=96)


def test_methods_that_mask_patches_can_start_from_a_published_vit_or_mae(folders):
    assert isinstance(start(folders["vit"]), ViT)
    assert isinstance(start(folders["vit_mae"]), ViT)


def broken(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: broken(f, model_type="bert"), "it is a bert; supported: vit, "),
        (lambda f: broken(f, model_type="nonsense"), "nonsense"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "safetensors"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json cannot be read"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: broken(f, num_hidden_layers=3), "weights are missing"),
    ],
    ids=["another model", "unknown", "bin only", "no statistics", "no config", "weights missing"],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, damage, message):
    folder = checkpoint("dinov2", tmp_path / "x")
    damage(folder)
    with pytest.raises(ValueError, match="no published backbone") as error:
        start(folder)
    assert message in str(error.value)
    assert "Three ways to get one" in str(error.value)


def test_an_id_that_cannot_be_reached_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="not cached while HF_HUB_OFFLINE is set"):
        published.resolve({"from": "facebook/dinov2-small"})


def test_a_size_of_half_a_patch_is_refused(folders):
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of patch_size 14; try image_size 28"):
        start(folders["dinov2"], image_size=30)


def test_efficientnet_lite0_comes_out_of_its_package():
    backbone = start(Path("efficientnet-lite0"), image_size=64)
    assert backbone.origin
    assert (backbone.origin.license, backbone.dim) == ("Apache-2.0", 1280)
    photo = torch.from_numpy(np.indices((64, 64)).sum(0) * 2 % 256).to(torch.uint8).expand(1, 3, 64, 64)
    with torch.no_grad():
        features = backbone(photo)
    assert features.min() >= 0  # it ends with relu6
    assert features.std() > 0.05  # trained weights; random ones give features near 0
    assert transformers.utils.is_timm_available()


def test_a_setting_that_contradicts_the_checkpoint_is_refused(folders):
    with pytest.raises(ValueError, match="patch_size is the checkpoint's, 14; leave it out; given: 8"):
        start(folders["dinov2"], patch_size=8)


@pytest.mark.parametrize("method", ["mae", "ijepa", "ibot", "dinov2"])
def test_a_method_that_masks_patches_names_the_families_it_goes_on_from(folders, method):
    recipe = METHODS[method]
    with pytest.raises(
        ValueError, match=f"{method} goes on from ViT and MAE checkpoints only, and this one is a dinov2"
    ):
        recipe.method(start(folders["dinov2"]), recipe.config())
