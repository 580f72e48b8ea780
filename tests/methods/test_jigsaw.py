"""Jigsaw against a derivation with loops; its permutations against an exhaustive greedy search."""

from itertools import permutations

import numpy as np
import pytest
import torch

from components.data.fields import Draws
from components.methods import METHODS
from components.methods.jigsaw import Jigsaw, JigsawConfig, distant_permutations
from components.models.backbone import ResNetBackbone, ViTBackbone, build, load
from components.training.optim import SGD, multiplier
from tests.tolerances import FINITE_DIFFERENCE, FLOAT64

VIT = ViTBackbone(image_size=16, patch_size=4, width=8, depth=1, heads=2)
RESNET = ResNetBackbone(kind="resnet18", image_size=16)
SMALL = {"cell": 10, "tile": 8, "orders": 7, "hidden": 5}


def make_jigsaw(shape=VIT, **settings):
    torch.manual_seed(0)
    return Jigsaw(build(shape), JigsawConfig(**{**SMALL, **settings})).double().train()


def batch(count=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    canvas = torch.randint(256, (count, 3, 30, 30), generator=random, dtype=torch.uint8)
    return [canvas, torch.rand(count, 19, generator=random)]


def naive_loss(method, batch):
    """Returns the loss computed tile by tile, in the permuted order."""
    mean, std = (x.flatten().numpy() for x in (method.backbone.mean, method.backbone.std))
    orders, tiles, targets = distant_permutations(9, method.config.orders), [], []
    for canvas, draws in zip(*batch, strict=True):
        values = draws.tolist()
        targets.append(int(values[18] * len(orders)))
        for place in orders[targets[-1]].tolist():
            row, column = divmod(place, 3)
            top, left = row * 10 + int(values[2 * place] * 3), column * 10 + int(values[2 * place + 1] * 3)
            tile = canvas[:, top : top + 8, left : left + 8].double().numpy()
            if method.config.normalized:
                tile = np.stack([(x - x.mean()) / x.std() * s + m for x, m, s in zip(tile, mean, std, strict=True)])
            tiles.append(tile)
    with torch.no_grad():
        x = method.backbone.whole(torch.from_numpy(np.stack(tiles))).numpy()
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    x = x @ weights["tile_head.0.weight"].T
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * weights["tile_head.1.weight"] + weights["tile_head.1.bias"]
    x = np.maximum(x, 0).reshape(len(targets), -1) @ weights["classifier.weight"].T + weights["classifier.bias"]
    return np.mean([np.log(np.exp(row).sum()) - row[target] for row, target in zip(x, targets, strict=True)])


@pytest.mark.parametrize("normalized", [True, False])
def test_loss_equals_a_naive_derivation_over_several_steps(normalized):
    method = make_jigsaw(normalized=normalized)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    for step in range(3):
        loss = method(batch(seed=step))["loss"]
        assert loss.item() == pytest.approx(naive_loss(method, batch(seed=step)), abs=FLOAT64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_gradients_of_all_parameters_are_finite_differences_of_the_naive_loss():
    method = make_jigsaw()
    method(batch())["loss"].backward()
    random = torch.Generator().manual_seed(1)
    for name, p in method.named_parameters():
        way, values = torch.randn(p.shape, generator=random, dtype=p.dtype), []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                p.add_(way, alpha=step)
                values.append(naive_loss(method, batch()))
            p.add_(way, alpha=1e-6)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx((p.grad * way).sum().item(), abs=FINITE_DIFFERENCE), name


def test_permutations_are_those_of_an_exhaustive_greedy_search():
    every = list(permutations(range(5)))
    selected = [every[0]]
    while len(selected) < 30:
        apart = [[sum(a != b for a, b in zip(one, other, strict=True)) for other in selected] for one in every]
        best = max(range(len(every)), key=lambda i: (min(apart[i]), sum(apart[i]), -i))
        selected.append(every[best])
    assert distant_permutations(5, 30).tolist() == [list(order) for order in selected]


def test_permutations_are_unique_and_have_large_hamming_distances():
    orders = distant_permutations(9, 100)
    assert sorted(map(tuple, distant_permutations(4, 24).tolist())) == sorted(permutations(range(4)))
    apart = (orders[:, None] != orders[None]).sum(-1)[~np.eye(100, dtype=bool)]
    assert apart.min() >= 6
    assert apart.mean() > 8
    first = orders[:9]  # no tile twice at one place
    assert all(sorted(first[:, place].tolist()) == list(range(9)) for place in range(9))


def test_color_and_contrast_of_a_tile_are_normalized_away():
    method = make_jigsaw()
    canvas, draws = batch()
    bright = (canvas // 2 + 40).double()
    seen = method.tiles(canvas // 2, draws[:, :-1])
    assert torch.allclose(method.tiles(bright, draws[:, :-1]), seen)
    shown = method.backbone.normalize(seen)
    assert torch.allclose(shown.mean((2, 3)), torch.zeros(36, 3).double(), atol=FLOAT64)
    assert torch.allclose(shown.square().mean((2, 3)), torch.ones(36, 3).double())
    assert method.tiles(torch.full_like(canvas, 7), draws[:, :-1]).isfinite().all()


def test_tiles_are_cut_anywhere_within_their_cell():
    method = make_jigsaw(normalized=False)
    places = torch.arange(900).view(1, 1, 30, 30).expand(1, 3, -1, -1)
    for draw, offset in ((0.0, 0), (0.5, 1), (1 - 2**-24, 2)):
        for place, tile in enumerate(method.tiles(places, torch.full((1, 18), draw))[:, 0]):
            row, column = divmod(place, 3)
            assert divmod(int(tile[0, 0]), 30) == (row * 10 + offset, column * 10 + offset)


def test_defaults_are_the_published_runs():
    config = JigsawConfig()
    assert (config.cell, config.tile, config.orders, config.hidden) == (85, 64, 2000, 1000)
    assert (config.gray, config.flip, config.normalized) == (0.66, 0.5, True)
    schedule = config.optimizer.schedule
    assert config.optimizer == SGD(lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True, schedule=schedule)
    rates = [multiplier(schedule, epoch / 105) for epoch in (2.5, 5, 29, 30, 60, 90, 100)]
    assert rates == pytest.approx([0.5, 1, 1, 0.1, 0.01, 1e-3, 1e-4])
    view, draws = METHODS["jigsaw"].method.views(config, 224)
    assert (view.size, view.ratio, draws) == (255, (1.0, 1.0), Draws(19))


def test_invalid_settings_raise_with_advice():
    with pytest.raises(ValueError, match="tile is 10 pixels; allowed: multiples of the backbone's patch_size 4 up to"):
        make_jigsaw(tile=10)
    with pytest.raises(ValueError, match="tile 12 is larger than its cell 10; try cell 16"):
        make_jigsaw(tile=12)


@pytest.mark.parametrize("shape", [VIT, RESNET], ids=["vit", "resnet"])
def test_features_are_averaged_over_tiles_as_in_training(shape, tmp_path):
    method = make_jigsaw(shape).float().eval()
    method.keep().save(tmp_path)
    assert load(tmp_path).patches == 8
    assert make_jigsaw(shape, averaged=False).keep().patches == 0
