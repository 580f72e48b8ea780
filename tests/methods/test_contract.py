"""What every method owes; a new line in METHODS gets all of these for free."""

import copy

import pytest
import torch

from components.config import parse
from components.data.augment import look
from components.methods import METHODS
from components.models.backbone import ResNetBackbone, ViTBackbone, build, load

SMALL = {
    "simclr": {"hidden": 8, "dim": 4},
    "moco": {"queue": 20, "dim": 4},
    "mocoscriptstyle": {"queue": 20, "dim": 4},
    "mocov3": {"hidden": 8, "dim": 4},
    "byol": {"hidden": 8, "dim": 4},
    "simsiam": {"dim": 8, "predictor_hidden": 4},
    "barlowtwins": {"dim": 8},
    "vicreg": {"dim": 8},
}
SHAPES = {
    "vit": ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2),
    "resnet": ResNetBackbone(kind="resnet18", image_size=16),
}
BATCH = 8


@pytest.fixture(params=[(name, shape) for name in METHODS for shape in SHAPES], ids="-".join)
def made(request, photos):
    name, shape = request.param
    torch.manual_seed(0)
    recipe = METHODS[name]
    config = recipe.method.complete(parse(recipe.config, SMALL.get(name, {}), name), photos)
    method = recipe.method(build(SHAPES[shape]), config).train()
    views = recipe.method.views(config, 16)
    return method, lambda epoch: look(photos, photos.rows("train")[:BATCH], views, 0, epoch)


def step(method, batch, optimizer, progress=0.5):
    torch.manual_seed(1)
    method.before_step(progress)
    loss = method(batch)["loss"]
    optimizer.zero_grad()
    loss.backward()
    method.after_backward()
    optimizer.step()
    method.after_step()
    return loss.detach()


def sgd(method):
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)


def test_views_are_the_same_under_a_seed_and_others_under_another(made):
    _, batch = made
    assert all(torch.equal(a, b) for a, b in zip(batch(0), batch(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(batch(0), batch(1), strict=True))


def test_the_loss_is_finite_and_reaches_exactly_what_is_trained(made):
    method, batch = made
    losses = method(batch(0))
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    losses["loss"].backward()
    for name, p in method.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_what_is_kept_changes_and_loads_alone(made, tmp_path):
    method, batch = made
    before = copy.deepcopy(method.keep().state_dict())
    step(method, batch(0), sgd(method))
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), method.keep().state_dict().values(), strict=True))
    method.keep().save(tmp_path)
    pixels = batch(0)[0]
    assert torch.equal(load(tmp_path).eval()(pixels), method.eval().keep()(pixels))


def test_a_reloaded_method_goes_on_as_if_nothing_had_been(made):
    method, batch = made
    step(method, batch(0), sgd(method))
    twin = copy.deepcopy(method)
    for value in twin.state_dict().values():
        value.zero_()
    twin.load_state_dict(method.state_dict())
    for epoch in (1, 2):
        assert torch.equal(step(method, batch(epoch), sgd(method)), step(twin, batch(epoch), sgd(twin)))


def test_an_unknown_setting_is_refused_with_the_known_ones():
    for name, recipe in METHODS.items():
        with pytest.raises(ValueError, match=r"tempature: no such setting; known here: .*optimizer"):
            parse(recipe.config, {"tempature": 1}, name)
