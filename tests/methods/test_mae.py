"""Against the paper's steps written out for one picture and one patch at a time, in float64."""

import copy

import pytest
import torch

from components.data.augment import View
from components.data.fields import Draws
from components.data.randomness import expand_draws
from components.methods import METHODS
from components.methods.mae import MAE, MAEConfig
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.models.heads import sincos
from components.training.optim import AdamW, Cosine, multiplier
from tests.tolerances import FLOAT64

TINY = ViTBackbone(image_size=16, patch_size=4, width=8, depth=2, heads=2)
SIDE, PATCH = 4, 4


def mae(**settings):
    torch.manual_seed(0)
    return MAE(build(TINY), MAEConfig(decoder_dim=12, decoder_depth=1, decoder_heads=3, **settings)).double().train()


def data(seed, count=3):
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 16, 16, generator=random).double() * 255, torch.rand(count, 2, generator=random)]


def through(backbone, x):
    """The encoder's own layers, for the tokens of one picture [M, D]."""
    x = x[None]
    for layer in backbone.trunk.layers:
        x = layer(x)
    return backbone.trunk.layernorm(x)[0]


def naive_loss(method, pixels, draws, ratio, norm_pix):
    """Section 3, one picture after the other: masked patches are removed, the others encoded and put back."""
    vit, losses = method.backbone, []
    for photo, noise in zip(pixels, expand_draws(draws, SIDE**2).tolist(), strict=True):
        image = (photo - vit.mean) / vit.std
        order = sorted(range(SIDE**2), key=lambda i: noise[i])
        visible, masked = order[: int(SIDE**2 * (1 - ratio))], order[int(SIDE**2 * (1 - ratio)) :]
        places, expected, tokens = sincos(SIDE, 8), {}, [vit.trunk.embeddings.cls_token[0, 0]]
        projection = vit.trunk.embeddings.patch_embeddings.projection
        for i in range(SIDE**2):
            top, left = i // SIDE * PATCH, i % SIDE * PATCH
            box = image[:, top : top + PATCH, left : left + PATCH]
            if i in visible:
                tokens.append(
                    (visible.index(i), (projection.weight * box).sum((1, 2, 3)) + projection.bias + places[i])
                )
            values = torch.stack([box[c, y, x] for y in range(PATCH) for x in range(PATCH) for c in range(3)])
            if norm_pix:
                mu = values.sum() / 48
                values = (values - mu) / (((values - mu) ** 2).sum() / 47 + 1e-6) ** 0.5
            expected[i] = values
        tokens[1:] = [token for _, token in sorted(tokens[1:], key=lambda pair: pair[0])]
        encoded = through(vit, torch.stack(tokens)) @ method.to_decoder.weight.T + method.to_decoder.bias
        places = sincos(SIDE, 12)
        whole = [encoded[0]] + [
            (encoded[1 + visible.index(i)] if i in visible else method.mask_token[0, 0]) + places[i]
            for i in range(SIDE**2)
        ]
        x = torch.stack(whole)[None]
        for layer in method.decoder.layers:
            x = layer(x)
        predicted = method.to_pixels(method.decoder.norm(x))[0, 1:]
        losses.append(sum(((predicted[i] - expected[i]) ** 2).mean() for i in masked) / len(masked))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("ratio", "norm_pix"), [(0.75, True), (0.5, False)])
def test_several_steps_equal_a_naive_derivation(ratio, norm_pix):
    method = mae(mask_ratio=ratio, norm_pix=norm_pix)
    twin = copy.deepcopy(method)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05) for m in (method, twin)]
    for step in range(3):
        pixels, draws = data(step)
        actual, expected = method([pixels, draws])["loss"], naive_loss(twin, pixels, draws, ratio, norm_pix)
        assert actual.item() == pytest.approx(expected.item(), abs=FLOAT64)
        for loss, optimizer in zip((actual, expected), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
        for (name, p), q in zip(method.named_parameters(), twin.parameters(), strict=True):
            assert p.grad is q.grad is None or torch.allclose(p.grad, q.grad, atol=FLOAT64), name
        for optimizer in optimizers:
            optimizer.step()
    for (name, p), q in zip(method.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.allclose(p, q[1], atol=FLOAT64), name


def test_the_encoder_never_sees_masked_patches():
    method = mae()
    pixels, draws = data(0)
    order = expand_draws(draws, 16).argsort(1)
    changed = pixels.clone()
    for photo, row in zip(changed, order.tolist(), strict=True):
        for i in row[4:]:
            photo[:, i // 4 * 4 : i // 4 * 4 + 4, i % 4 * 4 : i % 4 * 4 + 4] = 7
    visible = order[:, :4]
    # the same computation: what differs is left out before the first sum
    assert torch.equal(method.encode(pixels, visible), method.encode(changed, visible))
    assert not torch.equal(method([pixels, draws])["loss"], method([changed, draws])["loss"])


def test_only_masked_patches_enter_the_loss(monkeypatch):
    method = mae()
    batch = data(0)
    visible = expand_draws(batch[1], 16).argsort(1)[:, :4]
    before, decode = method(batch)["loss"], method.decode
    monkeypatch.setattr(
        method, "decode", lambda *args: decode(*args).scatter(1, visible[..., None].expand(-1, -1, 48), 9)
    )
    assert torch.equal(method(batch)["loss"], before)


def test_every_photo_has_its_own_mask_and_every_patch_is_visible_equally_often():
    order = expand_draws(torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)), 16).argsort(1)
    shown = torch.zeros(4000, 16).scatter(1, order[:, :4], 1)
    # the share of 4000 fixed draws has a standard deviation of 0.007
    assert torch.allclose(shown.mean(0), torch.full((16,), 0.25), atol=0.03)
    assert len({tuple(row) for row in shown.int().tolist()}) > 1000  # of the 1,820 there are


def test_positions_are_fixed_sines():
    method = mae()
    positions = method.backbone.trunk.embeddings.position_embeddings
    assert not positions.requires_grad
    assert not positions[0, 0].any()
    assert torch.allclose(positions[0, 1:].float(), sincos(4, 8))


def test_the_backbone_pools_the_mean_of_its_patches():
    """No loss reads the class token but through the decoder."""
    method = mae()
    pixels = data(0)[0]
    kept = method.keep()
    assert kept.pool == "mean"
    assert torch.allclose(kept(pixels), kept.tokens(pixels).mean(1))


def test_impossible_masks_raise_with_advice():
    with pytest.raises(ValueError, match=r"mask_ratio 0.99 of 16 patches leaves 0 visible.*try mask_ratio 0.5"):
        mae(mask_ratio=0.99)
    with pytest.raises(ValueError, match=r"mae needs patches, and resnet18 has none; try backbone.kind: vit"):
        MAE(build(ResNetBackbone(kind="resnet18", image_size=16)), MAEConfig())


def test_defaults_are_the_papers():
    config = MAEConfig()
    assert (config.mask_ratio, config.norm_pix) == (0.75, True)
    assert (config.decoder_dim, config.decoder_depth, config.decoder_heads) == (512, 8, 16)
    expected = AdamW(lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=Cosine(warmup=0.05))
    assert config.optimizer == expected
    assert multiplier(expected.schedule, 40 / 800) == pytest.approx(1)
    view, draws = METHODS["mae"].method.views(config, 224)
    assert view == View(224, crop=(0.2, 1.0), flip=0.5)  # and nothing else
    assert draws == Draws(2)
