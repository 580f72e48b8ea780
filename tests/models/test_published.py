import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoImageProcessor, AutoModel, TimmWrapperConfig, TimmWrapperModel

from components.methods import METHODS
from components.models import published
from components.models.backbone import Backbone, PublishedBackbone, ResNetBackbone, ViT, ViTBackbone, build, load
from components.models.families import FAMILIES
from components.models.origin import Origin
from tests.families import MAKERS, PIXELS, checkpoint
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


@pytest.mark.parametrize(
    "shape",
    [
        ResNetBackbone(kind="resnet18", image_size=32),
        ViTBackbone(image_size=32, patch_size=8, width=16, depth=1, heads=2),
    ],
    ids=["resnet", "vit"],
)
def test_ones_own_backbones_are_starts_too(shape, tmp_path):
    """A method changes nothing of them before it trains, and they are what they are called."""
    torch.manual_seed(1)
    own = build(shape).eval()
    own.save(tmp_path)
    photos = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for name in ("simclr", "published"):
        recipe = METHODS[name]
        kept = recipe.method(start(tmp_path), recipe.config()).keep().eval()
        assert torch.equal(kept(photos), own(photos))
        assert kept.origin == Origin(str(tmp_path), shape.kind)
    if shape.kind == "resnet18":
        with pytest.raises(ValueError, match="another first layer"):
            start(tmp_path, image_size=96)


def test_weights_that_were_trained_on_are_not_called_by_their_ancestors_name(folders, tmp_path):
    origin = Origin("facebook/dinov2-small", "dinov2", "abc", "apache-2.0", "LVD-142M")
    backbone = start(folders["dinov2"])
    backbone.origin = origin
    backbone.save(tmp_path)
    assert load(tmp_path).origin == origin
    trained_on = "LVD-142M (facebook/dinov2-small), maybe more since"
    assert start(tmp_path).origin == Origin(str(tmp_path), "dinov2", None, "apache-2.0", trained_on)


def timm_checkpoint(folder: Path, architecture: str, **model_args: Any) -> Path:
    config = TimmWrapperConfig(architecture=architecture, pretrained_cfg=PIXELS, model_args=model_args)
    TimmWrapperModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rate", ["drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_a_model_of_timm_is_not_random_in_train_mode(rate, tmp_path):
    folder = timm_checkpoint(tmp_path, "test_vit", img_size=32, **{rate: 0.5})
    torch.manual_seed(0)
    published_model, pixels = TimmWrapperModel.from_pretrained(folder).train(), torch.rand(2, 3, 32, 32)
    if rate != "drop_rate":  # of the classifier, which is not used
        first, second = (published_model(pixels).pooler_output for _ in range(2))
        assert not torch.equal(first, second)  # as published it is
    backbone = start(folder).train()
    assert torch.equal(backbone(pixels * 255), backbone(pixels * 255))


def test_a_model_of_timm_that_takes_one_size_refuses_views_of_another(tmp_path):
    backbone = start(timm_checkpoint(tmp_path, "test_vit", img_size=32), image_size=32)
    for name in ("dino", "swav", "lejepa", "jigsaw", "contextprediction"):
        recipe = METHODS[name]
        config = recipe.config(local_views=1) if name == "lejepa" else recipe.config()
        with pytest.raises(ValueError, match="takes squares of 32 pixels only"):
            recipe.method(backbone, config)


@pytest.mark.parametrize("loading", ["checkpoint_path", "pretrained"])
def test_a_model_of_timm_loads_no_other_file_than_its_own(loading, tmp_path):
    folder = timm_checkpoint(tmp_path / "x", "test_vit", img_size=32)
    with pytest.raises(ValueError, match="names other files to load weights from"):
        start(broken(folder, model_args={loading: "elsewhere.pth"}))
    with pytest.raises(ValueError, match="names other files to load weights from"):
        start(broken(folder, model_args={}, architecture="hf-hub:someone/else"))


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
        (lambda f: broken(f, hidden_size="abc"), "hidden_size"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"), "header"),
        (lambda f: (f / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.5}'), "three"),
    ],
    ids=[
        "another model",
        "unknown",
        "bin only",
        "no statistics",
        "no config",
        "weights missing",
        "no number",
        "git-lfs pointer",
        "one mean",
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, damage, message):
    folder = checkpoint("dinov2", tmp_path / "x")
    damage(folder)
    with pytest.raises(ValueError, match="no published backbone") as error:
        start(folder)
    assert message in str(error.value)
    assert "Three ways to get one" in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("[]", "a mapping is needed"), ("{", "is not JSON")])
def test_settings_that_are_none_name_their_file(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        start(tmp_path)
    assert "config.json" in str(error.value)


def test_a_card_that_cannot_be_read_costs_only_what_it_says(tmp_path):
    folder = checkpoint("dinov2", tmp_path / "x")
    (folder / "README.md").write_text("---\nlicense: [\n---\n", encoding="utf-8")
    assert start(folder).origin == Origin(str(folder), "dinov2")
    (folder / "README.md").write_text("---\ndatasets:\n- {name: imagenet}\n---\n", encoding="utf-8")
    assert "imagenet" in start(folder).origin.trained_on


def test_an_output_of_the_project_is_no_start(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is an output of this project"):
        published.resolve({"from": "artifacts/pretrain/simclr/backbone"})
    with pytest.raises(ValueError, match="patches is for backbones from random weights"):
        published.resolve({"from": str(folders["vit"]), "patches": 8})
    assert published.resolve({"from": str(folders["vit"]), "mean": [0.4, 0.5, 0.6]})["mean"] == (0.4, 0.5, 0.6)


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
    # exchanged tensors of equal shape would change these; noted when the logits equaled the makers' own network's
    highest = features[0].topk(3)
    assert highest.indices.tolist() == [54, 755, 1167]
    assert highest.values.tolist() == pytest.approx([4.007, 3.542, 3.384], abs=0.01)
    assert transformers.utils.is_timm_available()


def test_a_setting_that_contradicts_the_checkpoint_is_refused(folders):
    with pytest.raises(ValueError, match="patch_size is the checkpoint's, 14; leave it out; given: 8"):
        start(folders["dinov2"], patch_size=8)


@pytest.mark.parametrize("method", ["mae", "ijepa", "ibot", "dinov2"])
def test_a_method_that_masks_patches_names_the_families_it_goes_on_from(folders, method):
    recipe = METHODS[method]
    with pytest.raises(
        ValueError,
        match=f"{method} goes on from ViT and MAE checkpoints of the usual shape only",
    ):
        recipe.method(start(folders["dinov2"]), recipe.config())
