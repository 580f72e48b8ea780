"""Tests that every method in METHODS must pass."""

import copy
import re

import pytest
import torch
from small import SHAPES, batch, make

from components.config import parse
from components.methods import METHODS, TRAINED
from components.models.backbone import load
from tests.families import MAKERS
from tests.tolerances import LAYERS_FLOAT32


def refusal(name, shape):
    """Returns why the method refuses the backbone, or None if it accepts it."""
    try:
        make(name, shape)
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture(params=[(name, shape) for name in TRAINED for shape in SHAPES], ids="-".join)
def method_and_batch(request, photos):
    name, shape = request.param
    if why := refusal(name, shape):
        pytest.skip(why)
    return make(name, shape), lambda epoch: batch(name, photos, epoch)


@pytest.mark.parametrize("name", TRAINED)
def test_a_backbone_is_accepted_or_refused_with_advice(name):
    reasons = [refusal(name, shape) for shape in SHAPES]
    assert None in reasons
    assert all(re.search(r"(?i)(resnet|vit).*; try ", reason) for reason in reasons if reason), reasons


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


def test_views_are_equal_in_the_same_epoch_and_differ_in_another(method_and_batch):
    _, batch = method_and_batch
    assert all(torch.equal(a, b) for a, b in zip(batch(0), batch(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(batch(0), batch(1), strict=True))


def test_the_loss_is_finite_and_all_trained_parameters_have_a_gradient(method_and_batch):
    method, batch = method_and_batch
    losses = method(batch(0))
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    losses["loss"].backward()
    for name, p in method.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_the_kept_backbone_is_trained_and_loads_without_its_method(method_and_batch, tmp_path):
    method, batch = method_and_batch
    before = copy.deepcopy(method.keep().state_dict())
    step(method, batch(0), sgd(method))
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), method.keep().state_dict().values(), strict=True))
    method.keep().save(tmp_path)
    pixels = batch(0)[0]
    assert torch.equal(load(tmp_path).eval()(pixels), method.eval().keep()(pixels))


def test_a_reloaded_method_trains_on_with_the_same_losses(method_and_batch):
    method, batch = method_and_batch
    step(method, batch(0), sgd(method))
    twin = copy.deepcopy(method)
    for value in twin.state_dict().values():
        value.zero_()
    twin.load_state_dict(method.state_dict())
    for epoch in (1, 2):
        assert torch.equal(step(method, batch(epoch), sgd(method)), step(twin, batch(epoch), sgd(twin)))


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("name", TRAINED)
def test_a_method_goes_on_from_every_family_that_it_takes(name, family, photos, tmp_path):
    if why := refusal(name, family):
        assert re.search(r"(?i)(vit|backbone|size).*; (try|use) ", why), why
        return
    method = make(name, family)
    views = batch(name, photos, 0, size=method.keep().config.image_size)
    before = copy.deepcopy(method.keep().state_dict())
    loss = step(method, views, sgd(method))
    assert loss.isfinite()
    unused = {n for n, p in method.named_parameters() if (p.grad is not None) != p.requires_grad}
    assert not unused
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), method.keep().state_dict().values(), strict=True))
    method.keep().save(tmp_path)
    same, kept = load(tmp_path).eval(), method.eval().keep()
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), kept.state_dict().values(), strict=True))
    # a copy of a model may lie in memory in another way than the model, and then be added up in another order
    torch.testing.assert_close(same(views[0]), kept(views[0]), atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)


def test_an_unknown_setting_is_refused_with_the_known_ones():
    for name, recipe in METHODS.items():
        with pytest.raises(ValueError, match=r"tempature: no such setting; known here: .*optimizer"):
            parse(recipe.config, {"tempature": 1}, name)
