"""Context prediction against a derivation with loops, and against the shortcuts that the paper describes."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from components.data.fields import Draws
from components.evaluation import linear
from components.evaluation.features import standardize
from components.methods import METHODS
from components.methods.contextprediction import ContextPrediction, ContextPredictionConfig, neighbor_pairs
from components.models.backbone import ResNetBackbone, ViTBackbone, build, load
from components.training.optim import SGD, Constant, multiplier
from tests.tolerances import FINITE_DIFFERENCE, FLOAT32, FLOAT64, LAYERS_FLOAT32

VIT = ViTBackbone(image_size=16, patch_size=4, width=8, depth=1, heads=2)
RESNET = ResNetBackbone(kind="resnet18", image_size=16)
# Numbers are float64, but for the matrices that resample patches: hence FLOAT32 below.
SMALL = {"patch": 8, "gap": 2, "jitter": 1, "grids": 2, "smallest": 3, "hidden": 6}


def make_method(shape=VIT, **settings):
    torch.manual_seed(0)
    return ContextPrediction(build(shape), ContextPredictionConfig(**{**SMALL, **settings})).double().train()


def batch(method, count=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    views = ContextPrediction.views(method.config, 16)
    return [
        torch.rand(count, view.count, generator=random)
        if isinstance(view, Draws)
        else torch.randint(256, (count, 3, view.size, view.size), generator=random, dtype=torch.uint8)
        for view in views
    ]


def noise(seed, count):
    """lowbias32 in Python's own integers."""

    def mix(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x ^ (x >> shift)) * factor) % 2**32
        return x ^ (x >> 16)

    key = mix(int(seed * 2**32))
    return np.array([(mix(key ^ mix(place + 1)) >> 8) / 2**24 for place in range(count)])


def naive_patch(canvas, place, draws, config, mean):
    """Returns one patch as the paper describes it: canvas [3, S, S], six draws -> numpy [3, p, p]."""
    p, jitter = config.patch, 2 * config.jitter + 1
    row, column = divmod(place, 3)
    top = row * (p + config.gap) + int(draws[0] * jitter)
    left = column * (p + config.gap) + int(draws[1] * jitter)
    x = canvas[:, top : top + p, left : left + p].double()
    if draws[2] < config.resampled:
        side = int(math.sqrt(draws[3] * ((p - 1) ** 2 - config.smallest**2) + config.smallest**2))
        x = interpolate(x[None], (side, side), mode="bilinear", antialias=True)
        x = interpolate(x, (p, p), mode="bilinear")[0]
    x = x.numpy()
    zero = [channel.mean() if config.contrast else mean[i] for i, channel in enumerate(x)]
    x = np.stack([channel - z for channel, z in zip(x, zero, strict=True)])
    if config.color == "dropping":
        kept, grain = int(draws[4] * 3), noise(draws[5], 3 * p * p).reshape(3, p, p) - 0.5
        x = np.stack([x[i] if i == kept else grain[i] for i in range(3)])
    elif config.color == "projection":
        a = np.array([[-1.0, 2.0, -1.0]])
        x = np.tensordot(np.eye(3) - a.T @ a / (a @ a.T), x, 1)
    if config.contrast:
        x = x / np.sqrt((x**2).mean()) * 50
    return x + np.array(mean)[:, None, None]


def naive_loss(method, batch):
    """Returns the loss computed pair by pair; only trunk and weights come from the method."""
    config, mean = method.config, method.backbone.mean.flatten().tolist()
    vectors, pairs, labels = [], [], []
    for canvases, draws in zip(batch[::2], batch[1::2], strict=True):
        for canvas, own in zip(canvases, draws.double().reshape(-1, 9, 6).tolist(), strict=True):
            first = len(vectors)
            for place in range(9):
                vectors.append(naive_patch(canvas, place, own[place], config, mean))
            for y in range(3):
                for x in range(3):
                    for dx, dy in [(-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)]:
                        inside = 0 <= x + dx < 3 and 0 <= y + dy < 3
                        if inside and (config.pairs == "all" or (x, y) == (1, 1)):
                            pairs.append((first + 3 * y + x, first + 3 * (y + dy) + x + dx))
                            labels.append({-1: dx + 1, 0: (dx + 7) // 2, 1: dx + 6}[dy])  # pos2lbl of train.py
    with torch.no_grad():
        trunk = method.backbone.whole(torch.from_numpy(np.stack(vectors))).numpy()

    def norm(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    each = np.maximum(norm(trunk @ weights["patch_head.0.weight"].T), 0)
    x = np.stack([np.concatenate([each[a], each[b]]) for a, b in pairs])
    x = np.maximum(norm(x @ weights["pair_layer.weight"].T), 0)
    x = np.maximum(x @ weights["classifier.2.weight"].T + weights["classifier.2.bias"], 0)
    x = x @ weights["classifier.4.weight"].T + weights["classifier.4.bias"]
    return np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(x, labels, strict=True)])


@pytest.mark.parametrize("color", ["dropping", "projection", "none"])
@pytest.mark.parametrize(("contrast", "resampled"), [(True, 0.5), (False, 0.0), (False, 1.0)])
def test_loss_equals_a_naive_derivation(color, contrast, resampled):
    method = make_method(color=color, contrast=contrast, resampled=resampled)
    for seed in range(2):
        photos = batch(method, seed=seed)
        assert method(photos)["loss"].item() == pytest.approx(naive_loss(method, photos), abs=FLOAT32)


@pytest.mark.parametrize("shape", [VIT, RESNET], ids=["vit", "resnet"])
def test_pairs_center_compares_the_central_patch_with_its_eight_neighbors(shape):
    method = make_method(shape, pairs="center", grids=1)
    photos = batch(method, 2)
    assert method(photos)["loss"].item() == pytest.approx(naive_loss(method, photos), abs=FLOAT32)


def test_gradients_of_all_parameters_are_finite_differences_of_the_loss():
    method = make_method(grids=1, resampled=0.0)
    photos = batch(method, 2)
    method(photos)["loss"].backward()
    random = torch.Generator().manual_seed(1)
    for name, p in method.named_parameters():
        way, values = torch.randn(p.shape, generator=random, dtype=p.dtype), []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                p.add_(way, alpha=step)
                values.append(method(photos)["loss"].item())  # which is the naive one: see above
            p.add_(way, alpha=1e-6)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx((p.grad * way).sum().item(), abs=FINITE_DIFFERENCE), name


def test_every_pair_of_neighbors_occurs_in_both_orders():
    places, target = neighbor_pairs("all")
    direction = {(a, b): label for (a, b), label in zip(places.tolist(), target.tolist(), strict=True)}
    assert len(direction) == 40
    assert all(
        direction[b, a] == 7 - label for (a, b), label in direction.items()
    )  # the other order, the opposite direction
    assert neighbor_pairs("center")[0].tolist() == [[4, b] for b in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert neighbor_pairs("center")[1].tolist() == list(range(8))


def test_patches_keep_their_gap_and_stay_on_the_canvas():
    config = ContextPredictionConfig(**{**SMALL, "color": "none", "contrast": False, "resampled": 0.0})
    view = ContextPrediction.views(config, 16)[0]
    assert view.size == 3 * 8 + 2 * 2 + 2
    places = torch.arange(view.size**2).view(1, 1, view.size, view.size).expand(1, 3, -1, -1)
    method = make_method(color="none", contrast=False, resampled=0.0)
    for draw, offset in ((0.0, 0), (0.5, 1), (1 - 2**-24, 2)):
        patches = method.patches(places, torch.full((1, 54), draw))[:, 0]
        for place, patch in enumerate(patches):
            row, column = divmod(place, 3)
            top, left = divmod(int(patch[0, 0]), view.size)
            assert (top, left) == (row * 10 + offset, column * 10 + offset)
            assert int(patch[-1, -1]) == (top + 7) * view.size + left + 7


def test_the_patches_of_a_photo_depend_on_its_own_draws_alone():
    method = make_method(resampled=0.5)
    canvas, draws = batch(method, 4)[:2]
    whole = method.patches(canvas, draws).unflatten(0, (4, 9))
    torch.manual_seed(5)
    assert torch.allclose(method.patches(canvas[2:3], draws[2:3]), whole[2], atol=FLOAT64)


def test_a_patch_is_resampled_from_at_least_the_smallest_side_or_left_unchanged():
    method = make_method(color="none", contrast=False, resampled=1.0)
    x = torch.rand(1, 3, 8, 8).double() * 255
    color_draws = torch.zeros(1, 2)
    for area_draw, side in ((0.0, 3), (0.999, 6)):  # area from 3² to 7², rounded down
        small = interpolate(x, (side, side), mode="bilinear", antialias=True)
        expected = interpolate(small, (8, 8), mode="bilinear")
        assert torch.allclose(
            method.remove_shortcuts(x, torch.tensor([[0.0, area_draw]]), color_draws), expected, atol=255 * FLOAT32
        )
    calm = make_method(color="none", contrast=False, resampled=0.5)
    assert torch.allclose(calm.remove_shortcuts(x, torch.tensor([[0.6, 0.5]]), color_draws), x, atol=FLOAT64)


def test_contrast_and_brightness_of_a_patch_are_normalized_away():
    method = make_method(color="none", resampled=0.0)
    x, draws = torch.rand(4, 3, 8, 8).double() * 100, torch.zeros(4, 2)
    seen = method.remove_shortcuts(x, draws, draws)
    assert torch.allclose(method.remove_shortcuts(1.7 * x + 30, draws, draws), seen)
    centered = seen - method.backbone.mean
    assert torch.allclose(centered.square().mean((1, 2, 3)).sqrt(), torch.full((4,), 50.0).double())
    flat = method.remove_shortcuts(torch.full((1, 3, 8, 8), 9.0).double(), draws[:1], draws[:1])
    assert torch.allclose(flat, method.backbone.mean.expand_as(flat))


def test_the_head_cannot_silence_its_activations():
    """With scale and shift in its batch norm the network does just that (train.py's prototxt)."""
    method = make_method()
    norms = [module for module in method.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert len(norms) == 2
    assert all(norm.weight is None and norm.bias is None for norm in norms)


def photos_with_aberration(count, size, seed, tint):
    """Textures whose green lies 8 % nearer to the middle, gray or of one color each: uint8 [count, 3, size, size].

    Sums of 20 waves: only the aberration depends on the position, and nothing is interpolated.
    """
    random = torch.Generator().manual_seed(seed)
    wave = 0.6 * torch.randn(count, 20, 2, generator=random)
    phase = 2 * math.pi * torch.rand(count, 20, 1, generator=random)
    line = torch.arange(size) - (size - 1) / 2
    place = torch.cartesian_prod(line, line).T  # [2, size²], from the middle
    rest, green = ((wave @ place * zoom + phase).cos().mean(1) for zoom in (1.0, 1.08))
    paint = 1 - tint * torch.rand(count, 3, 1, generator=random)
    photos = (0.5 + 0.7 * torch.stack([rest, green, rest], 1)) * paint * 255
    return photos.clamp(0, 255).round().to(torch.uint8).unflatten(2, (size, size))


def fringes(patches):
    """Returns how one channel is shifted against another: correlations at small shifts, less the opposite ones.

    [M, 3, p, p] -> [M, 36]. A first layer could compute this. It does not measure blur.
    """
    x = patches - patches.mean((2, 3), keepdim=True)
    x = x / x.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    features, inner = [], x.shape[-1] - 4
    shifts = [(dy, dx) for dy in range(5) for dx in range(5)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        middle = x[:, a, 2:-2, 2:-2]
        near = [(middle * x[:, b, dy : dy + inner, dx : dx + inner]).mean((1, 2)) for dy, dx in shifts]
        features += [near[i] - near[24 - i] for i in range(12)]
    return torch.stack(features, 1).float()


def position_accuracy(tint=0.0, **settings):
    """Returns the accuracy of a linear probe that predicts a patch's position from the fringes; chance is 1 / 9."""
    method = make_method(**{"patch": 16, "gap": 4, "jitter": 1, "grids": 1, "smallest": 6, **settings})
    size = ContextPrediction.views(method.config, 16)[0].size
    seen = []
    for seed, count in ((0, 160), (1, 110)):
        draws = torch.rand(count, 54, generator=torch.Generator().manual_seed(seed + 7))
        seen.append(fringes(method.patches(photos_with_aberration(count, size, seed, tint), draws)))
    train, test = standardize(*seen)
    places = [torch.arange(9).repeat(len(x) // 9) for x in seen]
    weight, bias = linear.fit(train, places[0], 9, penalty=1e-2, steps=40)
    return float(((test @ weight.T + bias).argmax(1) == places[1]).float().mean())


@pytest.mark.parametrize("tint", [0.0, 0.3])
def test_without_countermeasures_color_fringes_predict_the_position(tint):
    assert position_accuracy(tint, color="none", contrast=False, resampled=0.0) > 0.7


def test_contrast_normalization_and_resampling_alone_do_not_prevent_it():
    assert position_accuracy(color="none") > 0.5


@pytest.mark.parametrize("tint", [0.0, 0.3])
@pytest.mark.parametrize("color", ["dropping", "projection"])
def test_color_dropping_or_projection_prevents_it(color, tint):
    assert (
        position_accuracy(tint, color=color) < 0.2
    )  # chance is 0.11, and the nine patches of a picture are not independent


def test_defaults_are_the_papers():
    config = ContextPredictionConfig()
    assert (config.patch, config.gap, config.jitter, config.grids, config.pairs) == (96, 48, 7, 4, "all")
    assert (config.color, config.resampled, config.smallest, config.contrast) == ("dropping", 0.33, 10, True)
    assert (config.hidden, config.flip, config.gray) == (4096, 0.0, 0.0)
    assert config.optimizer == SGD(lr=1e-5 * 256 * 4 * 40, momentum=0.0, weight_decay=0.0, schedule=Constant())
    assert multiplier(config.optimizer.schedule, 0.9) == 1.0
    views = METHODS["contextprediction"].method.views(config, 224)
    assert len(views) == 8
    assert (views[0].size, views[0].ratio, views[1]) == (398, (1.0, 1.0), Draws(54))
    assert views[0].crop[0] == pytest.approx(398**2 / 450_000, abs=0.005)  # two digits


def test_invalid_settings_raise_with_advice():
    with pytest.raises(ValueError, match="patch is 10 pixels; allowed: multiples of the backbone's patch_size 4 up to"):
        make_method(patch=10)
    with pytest.raises(ValueError, match=r"patch is 20 pixels; .* up to its image_size 16; try 4"):
        make_method(patch=20)
    assert make_method(RESNET, patch=10).config.patch == 10
    with pytest.raises(ValueError, match="smallest 8 is not under patch 8; try 2"):
        ContextPredictionConfig(patch=8, smallest=8)


@pytest.mark.parametrize("shape", [VIT, RESNET], ids=["vit", "resnet"])
def test_features_are_averaged_over_patches_as_in_training(shape, tmp_path):
    method = make_method(shape).float().eval()
    method.keep().save(tmp_path)
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    parts = [pixels[:, :, top : top + 8, left : left + 8] for top in (0, 4, 8) for left in (0, 4, 8)]
    expected = torch.stack([method.backbone.whole(part) for part in parts]).mean(0)
    kept = load(tmp_path).eval()
    assert kept.patches == 8
    assert torch.allclose(kept(pixels), expected, atol=LAYERS_FLOAT32)
    # training still sees single patches
    assert torch.allclose(method.backbone.whole(parts[0]), kept.whole(parts[0]), atol=LAYERS_FLOAT32)
    assert make_method(shape, averaged=False).keep().patches == 0
