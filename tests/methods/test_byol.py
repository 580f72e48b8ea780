"""Against a re-derivation in numpy, gradients by finite differences, in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from naive import TINY, assert_gradients, network, pixels

from components.methods import METHODS
from components.methods.byol import BYOL, BYOLConfig
from components.models.backbone import build
from components.training.optim import LARS, Cosine
from tests.tolerances import FLOAT64

MOMENTUM = 0.9


def byol():
    torch.manual_seed(0)
    return BYOL(build(TINY), BYOLConfig(hidden=16, dim=3, momentum=MOMENTUM)).double().train()


def regression(p, z):
    """Equation 2, one picture at a time."""
    return np.mean([np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2) for a, b in zip(p, z, strict=True)])


def paper(method, target, views):
    """target: the outputs of the target network for both views."""
    z = [network(method.online, view) for view in views]
    p = [network(method.predictor, view) for view in z]
    return regression(p[0], target[1]) + regression(p[1], target[0])


def test_several_steps_equal_a_naive_derivation():
    method = byol()
    average = {name: p.detach().clone() for name, p in method.online.named_parameters()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.3)
    steps = 4
    for step in range(steps):
        views = pixels(step)
        method.before_step(step / steps)
        reference = copy.deepcopy(method.online)
        reference.load_state_dict({**method.online.state_dict(), **average})
        expected = paper(method, [network(reference, view) for view in views], views)
        optimizer.zero_grad()
        loss = method(views)["loss"]
        loss.backward()
        assert loss.item() == pytest.approx(expected, abs=FLOAT64)
        optimizer.step()
        method.after_step()
        tau = 1 - (1 - MOMENTUM) * (math.cos(math.pi * step / steps) + 1) / 2  # section 3.2
        for name, p in method.online.named_parameters():
            average[name] = tau * average[name] + (1 - tau) * p.detach()
        for name, p in method.target.module.named_parameters():
            assert torch.allclose(p, average[name], atol=FLOAT64), name


def test_gradients_are_those_of_the_paper_with_a_constant_target():
    method, views = byol(), pixels(0)
    with torch.no_grad():
        for p in method.target.parameters():
            p.add_(0.1 * torch.randn_like(p))
    target = [network(method.target.module, view) for view in views]
    method(views)["loss"].backward()
    assert_gradients(method, lambda: paper(method, target, views))
    assert all(p.grad is None for p in method.target.parameters())


def test_the_target_normalizes_by_its_own_batch():
    """A target in eval mode would normalize by statistics that lag behind: another target than the paper's."""
    method, views = byol(), pixels(0)
    before = method.target.module[1][1].running_mean.clone()
    method(views)
    assert not torch.equal(before, method.target.module[1][1].running_mean)


def test_defaults_are_the_papers():
    config = BYOLConfig()
    assert (config.hidden, config.dim, config.momentum) == (4096, 256, 0.996)
    assert config.optimizer == LARS(lr=0.2, momentum=0.9, trust=1e-3, weight_decay=1.5e-6, schedule=Cosine(warmup=0.01))
    one, two = METHODS["byol"].method.views(config, 224)
    for view, blur, solarize in ((one, 1.0, 0.0), (two, 0.1, 0.2)):
        assert (view.crop, view.flip, view.gray, view.blur, view.solarize) == ((0.08, 1.0), 0.5, 0.2, blur, solarize)
        assert vars(view.jitter) == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8}
    method = byol()
    layers = [type(layer).__name__ for layer in method.predictor]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [method.predictor[i].bias is not None for i in (0, 3)] == [True, False]
    assert [type(layer).__name__ for layer in method.online[1]] == layers
