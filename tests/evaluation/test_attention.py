"""Maps of attention: the ViT's by hand, and of every family a map of the right shape that depends on the photo."""

import numpy as np
import pytest
import torch

from components.data.photos import Photos
from components.evaluation.attention import CLASS_TOKEN, SIMILARITY, attention_maps, patch_colors, write_maps
from components.models.backbone import PublishedBackbone, ResNetBackbone, build
from components.reporting.maps import read_maps
from tests.families import MAKERS, checkpoint
from tests.tolerances import LAYERS_FLOAT32

CLASS_FAMILIES = {"vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"}


def photos(size):
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_class_tokens_attention_is_that_of_its_formula(tiny):
    backbone = build(tiny).eval()
    pixels = photos(16)
    with torch.no_grad():
        x = backbone.trunk.layers[0](backbone.embed(pixels), None)
        last = backbone.trunk.layers[-1]
        normed = last.layernorm_before(x)
        query, key = (layer(normed).view(3, 5, 2, 8) for layer in (last.attention.q_proj, last.attention.k_proj))
        expected = torch.zeros(3, 4)
        for photo in range(3):
            for head in range(2):
                weights = (key[photo, :, head] @ query[photo, 0, head] / 8**0.5).softmax(0)
                expected[photo] += weights[1:] / 2
    expected -= expected.amin(1, keepdim=True)
    expected /= expected.amax(1, keepdim=True)
    maps, shown = attention_maps(backbone, pixels)
    assert shown == CLASS_TOKEN
    assert (maps.flatten(1) - expected).abs().max() < LAYERS_FLOAT32
    before = backbone(pixels)
    attention_maps(backbone, pixels)
    assert torch.equal(backbone(pixels), before)  # it leaves the backbone as it was


@pytest.mark.parametrize("family", MAKERS)
def test_every_family_has_a_map(family, tmp_path):
    values = {"kind": "published", "from": str(checkpoint(family, tmp_path)), "image_size": 56}
    patch = 14 if family.startswith("dinov2") else 4
    if family != "timm_wrapper":
        values["patch_size"] = patch
    backbone = build(PublishedBackbone(**values)).eval()
    pixels = photos(56)
    maps, shown = attention_maps(backbone, pixels)
    side = 2 if family == "timm_wrapper" else 56 // patch
    assert maps.shape == (3, side, side)
    assert shown == (CLASS_TOKEN if family in CLASS_FAMILIES else SIMILARITY)
    assert torch.equal(maps.amin((1, 2)), torch.zeros(3))
    assert torch.equal(maps.amax((1, 2)), torch.ones(3))
    assert (maps[0] - maps[1]).abs().max() > 0.01


def test_a_similarity_is_a_cosine_with_the_mean_of_all_places():
    torch.manual_seed(0)
    backbone = build(ResNetBackbone(kind="resnet18", image_size=64)).eval()
    maps, shown = attention_maps(backbone, photos(64))
    assert shown == SIMILARITY
    with torch.no_grad():
        tokens = backbone.tokens(photos(64)).double().numpy()
    for photo, own in zip(maps, tokens, strict=True):
        mean = own.mean(0)
        cosines = np.array([place @ mean / np.linalg.norm(place) / np.linalg.norm(mean) for place in own])
        expected = (cosines - cosines.min()) / (cosines.max() - cosines.min())
        assert np.abs(photo.flatten().numpy() - expected).max() < LAYERS_FLOAT32


def test_colors_are_the_first_three_principal_components_of_all_places(tiny):
    backbone = build(tiny).eval()
    with torch.no_grad():
        tokens = backbone.tokens(photos(16)).double().flatten(0, 1).numpy()
    tokens = tokens - tokens.mean(0)
    values, vectors = np.linalg.eigh(tokens.T @ tokens)
    colors = patch_colors(backbone, photos(16)).flatten(0, 2).numpy()
    for channel in range(3):
        component = tokens @ vectors[:, np.argsort(values)[-1 - channel]]
        low, high = np.quantile(component, [0.02, 0.98])
        expected = (255 * (component - low) / (high - low)).clip(0, 255)
        own = colors[:, channel].astype(float)
        error = min(np.abs(own - expected).max(), np.abs(255 - own - expected).max())  # the sign is arbitrary
        assert error < 2  # whole numbers, and quantiles of float32


def test_maps_are_read_as_they_were_written(tiny, prepared, tmp_path):
    source, file = Photos(prepared), tmp_path / "maps.safetensors"
    write_maps(build(tiny), source, source.rows("test")[:3], file)
    assert read_maps({"moco": file}, source) is None  # four places show nothing
    finer = tiny.model_copy(update={"patch_size": 4})
    write_maps(build(finer), source, source.rows("test")[:3], file)
    maps = read_maps({"simclr": tmp_path / "none", "moco": file}, source)
    assert (maps.method, maps.shown) == ("moco", CLASS_TOKEN)
    assert [len(three) for three in maps.photos] == [3, 3, 3]
    assert len({uri for three in maps.photos for uri in three}) == 9  # all different
