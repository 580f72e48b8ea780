import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import resnet18
from transformers import AutoModel

from components.models import resnet
from components.models.backbone import ResNetBackbone, ViTBackbone, build, load
from components.models.heads import sincos
from components.models.memory import EMA, Queue
from tests.tolerances import BF16, FLOAT32, FLOAT64, LAYERS_FLOAT32

PIXELS = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SHAPES = [
    ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)),
    ResNetBackbone(kind="resnet18", image_size=16),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.kind)
def backbone(request):
    torch.manual_seed(0)
    return build(request.param).eval()


def test_a_saved_and_loaded_backbone_gives_the_same_features(backbone, tmp_path):
    backbone.save(tmp_path)
    loaded = load(tmp_path).eval()
    assert loaded.config == backbone.config
    assert torch.equal(loaded(PIXELS), backbone(PIXELS))
    assert torch.equal(loaded.tokens(PIXELS), backbone.tokens(PIXELS))


def test_features_and_tokens_have_their_documented_shapes(backbone):
    assert backbone(PIXELS).shape == (3, backbone.dim)
    assert backbone.tokens(PIXELS).shape == (3, 4, backbone.dim)


def test_transformers_loads_a_saved_vit_with_the_same_features(tmp_path):
    backbone = build(SHAPES[0]).eval()
    backbone.save(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path).eval()
    out = stock(backbone.normalize(PIXELS.float())).last_hidden_state
    assert torch.allclose(out[:, 0], backbone(PIXELS), atol=LAYERS_FLOAT32)
    assert torch.allclose(out[:, 1:], backbone.tokens(PIXELS), atol=LAYERS_FLOAT32)


@pytest.mark.parametrize("depth", [1, 3])
def test_class_token_equals_the_first_token_of_the_sequence_and_so_do_the_gradients(depth):
    torch.manual_seed(0)
    vit = build(SHAPES[0].model_copy(update={"depth": depth})).double()
    upstream = torch.randn(3, 16, dtype=torch.float64)
    results = []
    for token in (vit.class_token(PIXELS), vit.sequence(PIXELS)[:, 0]):
        gradients = torch.autograd.grad((token * upstream).sum(), list(vit.parameters()))
        results.append([token, *gradients])
    for actual, expected in zip(*results, strict=True):
        assert torch.allclose(actual, expected, rtol=FLOAT64, atol=FLOAT64)


def test_a_saved_resnet_has_torchvisions_keys(tmp_path):
    backbone = build(ResNetBackbone(kind="resnet18", image_size=128)).eval()
    backbone.save(tmp_path)
    stock = resnet18()
    missing, unexpected = stock.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3)])
@pytest.mark.parametrize("side", [7, 8])
def test_a_small_map_is_convolved_as_one_matrix_product(stride, kernel, side, monkeypatch):
    monkeypatch.setattr(resnet, "MAX_POSITIONS", 64)
    monkeypatch.setattr(resnet, "MIN_CHANNELS", 5)
    plain = torch.nn.Conv2d(3, 5, kernel, stride, padding=kernel // 2, bias=False).double()
    conv = copy.deepcopy(plain)
    conv.__class__ = resnet.Conv2d
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda *_: pytest.fail("torch's own convolution was called"))
    actual = conv(x)
    monkeypatch.undo()
    gradients = [
        torch.autograd.grad(y.square().sum(), (x, net.weight)) for y, net in ((actual, conv), (plain(x), plain))
    ]
    assert torch.allclose(actual, plain(x), atol=FLOAT64)
    assert all(torch.allclose(a, b, atol=FLOAT64) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("kernel", "images"), [(1, 2), (3, 0)])
def test_convolutions_that_one_matrix_product_would_slow_down_are_torchs(kernel, images, monkeypatch):
    conv = resnet.Conv2d(3, 512, kernel, padding=kernel // 2, bias=False)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda _, x: x.new_zeros(7))
    assert conv(torch.randn(images, 3, 4, 4)).shape == (7,)


def test_small_images_keep_their_resolution_in_the_stem():
    assert build(ResNetBackbone(kind="resnet18", image_size=32)).tokens(PIXELS.repeat(1, 1, 2, 2)).shape[1] == 16
    assert build(ResNetBackbone(kind="resnet18", image_size=96)).tokens(PIXELS.repeat(1, 1, 6, 6)).shape[1] == 9


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 4)])
def test_positions_at_other_image_sizes_equal_those_of_transformers(height, width):
    vit = build(ViTBackbone(image_size=24, patch_size=8, width=16, depth=1, heads=2))
    pixels = torch.zeros(2, 3, 8 * height, 8 * width, dtype=torch.uint8)
    stock = vit.trunk.embeddings(vit.normalize(pixels), interpolate_pos_encoding=True)
    assert torch.allclose(vit.embed(pixels), stock, atol=FLOAT32)


def test_a_vit_takes_images_of_other_sizes():
    assert build(SHAPES[0])(PIXELS.repeat(1, 1, 2, 2)).shape == (3, 16)


def test_a_folder_without_a_backbone_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no backbone: config.json, model.safetensors"):
        load(tmp_path)
    build(SHAPES[0]).save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(ValueError, match="'swin'; allowed: resnet18, resnet50, vit, "):
        load(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("hidden_act", "relu"), ("qkv_bias", False)])
def test_a_vit_with_another_activation_or_without_biases_is_read_as_it_is(name, value, tmp_path):
    build(SHAPES[0]).save(tmp_path)
    with torch.no_grad():
        before = load(tmp_path).eval()(PIXELS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
    backbone, stock = load(tmp_path).eval(), AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        out = stock(backbone.normalize(PIXELS.float())).last_hidden_state
        assert torch.allclose(out[:, 0], backbone(PIXELS), atol=LAYERS_FLOAT32)
        assert name == "qkv_bias" or not torch.allclose(before, backbone(PIXELS), atol=LAYERS_FLOAT32)


@pytest.mark.parametrize("eps", [1e-6, 1e-12, 1e-2])
def test_the_epsilon_of_layer_norm_is_saved_and_loaded(eps, tmp_path):
    """The default is 1e-6, as in timm, DINO and MAE; backbones saved by earlier versions have transformers' 1e-12."""
    assert ViTBackbone().layer_norm_eps == 1e-6
    backbone = build(SHAPES[0].model_copy(update={"layer_norm_eps": eps})).eval()
    assert {module.eps for module in backbone.modules() if isinstance(module, torch.nn.LayerNorm)} == {eps}
    backbone.save(tmp_path)
    assert torch.equal(load(tmp_path).eval()(PIXELS), backbone(PIXELS))
    stock = AutoModel.from_pretrained(tmp_path).eval()
    assert stock.config.layer_norm_eps == eps
    features = stock(backbone.normalize(PIXELS.float())).last_hidden_state[:, 0]
    assert torch.allclose(features, backbone(PIXELS), atol=LAYERS_FLOAT32)


def test_a_vit_starts_from_xavier_weights():
    """Each matrix by itself: query, key and value too, and the patch embedding as [width, 3 · patch²]."""
    torch.manual_seed(0)
    vit = build(ViTBackbone(image_size=16, patch_size=8, width=64, depth=1, heads=2))
    layer = vit.trunk.layers[0]
    attention, mlp = layer.attention, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    kernel = vit.trunk.embeddings.patch_embeddings.projection.weight.flatten(1)
    for weight in (*(layer.weight for layer in projections), mlp.fc1.weight, mlp.fc2.weight, kernel):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * bound < weight.abs().max() < bound
        # the deviation of 4096 draws or more differs by 0.7 % from that of their distribution
        assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)


def test_the_ema_follows_its_formula_and_keeps_its_own_batch_norm_statistics():
    student = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    ema = EMA(student)
    before = copy.deepcopy(ema.module.state_dict())
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1)
    student[1].running_mean.fill_(9)
    ema.update(student, 0.9)
    for name, p in ema.module.named_parameters():
        assert torch.allclose(p, before[name] * 0.9 + (before[name] + 1) * 0.1)
    assert torch.equal(ema.module[1].running_mean, torch.zeros(3))
    assert not any(p.requires_grad for p in ema.parameters())


def test_a_queue_overwrites_its_oldest_items():
    queue = Queue(5, 2)
    assert torch.allclose(queue.items.norm(dim=1), torch.ones(5))
    for start in (0, 3, 6):
        queue.push(torch.arange(start, start + 3).float()[:, None].repeat(1, 2))
    assert queue.items[:, 0].tolist() == [5, 6, 7, 8, 4]  # the last 5 of the 9 that were pushed
    assert int(queue.cursor) == 4


def test_a_subset_of_the_tokens_can_be_encoded():
    torch.manual_seed(0)
    vit = build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2))
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    whole = vit.embed(pixels)
    assert whole.shape == (3, 5, 16)
    assert torch.equal(vit.encode(whole), vit.sequence(pixels))
    stock = vit.trunk(vit.normalize(pixels)).last_hidden_state
    assert torch.allclose(vit.encode(whole), stock, atol=LAYERS_FLOAT32)
    assert vit.encode(whole[:, :3]).shape == (3, 3, 16)
    hidden = torch.zeros(3, 4, dtype=torch.bool)
    hidden[0, 2] = True
    token = torch.full((16,), 7.0)
    masked = vit.embed(pixels, hidden, token)
    position = vit.trunk.embeddings.position_embeddings[0, 3]
    assert torch.allclose(masked[0, 3], token + position)
    masked[0, 3] = whole[0, 3]
    assert torch.equal(masked, whole)  # no other token has changed


def test_mean_pooling_is_saved_and_loaded(tmp_path):
    vit = build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2)).eval()
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    vit.pool = "mean"
    assert torch.allclose(vit(pixels), vit.tokens(pixels).mean(1), atol=LAYERS_FLOAT32)
    vit.save(tmp_path)
    assert torch.allclose(load(tmp_path).eval()(pixels), vit(pixels), atol=LAYERS_FLOAT32)
    AutoModel.from_pretrained(tmp_path)


def test_tokens_that_are_not_visible_have_the_same_effect_as_absent_ones():
    torch.manual_seed(0)
    vit = build(SHAPES[0]).double().eval()
    x = vit.embed(PIXELS)
    visible = torch.tensor([[True, True, False, True, False]] * 3)
    assert torch.allclose(vit.encode(x, visible)[visible], vit.encode(x[:, [0, 1, 3]]).flatten(0, 1), atol=FLOAT64)
    assert not torch.allclose(vit.encode(x)[visible], vit.encode(x[:, [0, 1, 3]]).flatten(0, 1), atol=1e-3)


def test_fixed_positions_are_sines_and_zero_for_the_class_token():
    vit = build(SHAPES[0])
    vit.fix_positions()
    positions = vit.trunk.embeddings.position_embeddings
    assert not positions.requires_grad
    assert not positions[0, 0].any()
    assert torch.equal(positions[0, 1:], sincos(2, 16))


def test_the_features_of_the_last_block_are_the_backbones(backbone):
    features = backbone.blocks(PIXELS)
    assert len(features) == (2 if backbone.config.kind == "vit" else 4)
    assert torch.allclose(features[-1], backbone(PIXELS), atol=LAYERS_FLOAT32)
    assert not torch.allclose(features[0], features[-1][:, : features[0].shape[1]])
    backbone.pool, backbone.patches = "mean", 8
    assert torch.allclose(backbone.blocks(PIXELS)[-1], backbone(PIXELS), atol=LAYERS_FLOAT32)


def test_averaging_over_patches_is_saved_and_loaded(backbone, tmp_path):
    pixels = PIXELS[:, :, :, :14].repeat(1, 1, 1, 2)[:, :, :, :20]  # 16 high, 20 wide
    backbone.patches = 8
    cuts = [pixels[:, :, top : top + 8, left : left + 8] for top in (0, 4, 8) for left in (0, 6, 12)]
    for pool in ("class", "mean"):
        backbone.pool = pool
        assert torch.allclose(backbone(pixels), sum(map(backbone.whole, cuts)) / 9, atol=LAYERS_FLOAT32)
    backbone.save(tmp_path)
    loaded = load(tmp_path).eval()
    assert (loaded.patches, loaded.config.patches) == (8, 8)
    assert torch.allclose(loaded(pixels), backbone(pixels), atol=LAYERS_FLOAT32)
    assert backbone.tokens(PIXELS).shape[1] == 4  # tokens are always those of the whole image


def test_as_stock_returns_the_default_features_of_the_whole_image(backbone):
    expected = backbone(PIXELS)
    backbone.patches = 8
    if backbone.config.kind == "vit":
        backbone.pool = "mean"
    assert not torch.allclose(backbone(PIXELS), expected)
    assert torch.equal(backbone.as_stock()(PIXELS), expected)


def test_patches_larger_than_the_image_are_refused():
    with pytest.raises(ValueError, match="patches 20 is larger than image_size 16"):
        ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2, patches=20)


def test_both_attention_implementations_agree_and_the_faster_one_is_used(monkeypatch):
    """On a CPU in bf16 only the backward pass of the fused one is slow."""
    torch.manual_seed(0)
    vit = build(SHAPES[0])
    expected = vit(PIXELS)
    monkeypatch.setattr("components.models.vit.attention", lambda _device, **_: "eager")
    assert torch.allclose(vit(PIXELS), expected, atol=LAYERS_FLOAT32)
    monkeypatch.undo()
    with torch.autocast("cpu", torch.bfloat16):
        in_bf16 = vit(PIXELS)
        assert vit.trunk.config._attn_implementation == "eager"
        with torch.no_grad():
            vit(PIXELS)
    assert vit.trunk.config._attn_implementation == "sdpa"
    assert torch.allclose(in_bf16.float(), expected, atol=BF16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_are_not_visible_have_no_effect_in_any_precision(dtype):
    torch.manual_seed(0)
    vit = build(SHAPES[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        x = vit.embed(PIXELS)
        visible = torch.tensor([True, True, False, True, False]).expand(3, -1)
        other = torch.where(visible[:, :, None], x, torch.randn_like(x))
        # the same computation: what differs has a weight of exactly 0
        assert torch.equal(vit.encode(x, visible)[visible], vit.encode(other, visible)[visible])
