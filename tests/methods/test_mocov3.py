"""Against a re-derivation in numpy, gradients by finite differences, in float64. Over ranks: test_over_ranks.py."""

import math

import numpy as np
import pytest
import torch
from naive import TINY, assert_gradients, network, pixels

from components.methods import METHODS
from components.methods.mocov3 import MoCoV3, MoCoV3Config
from components.methods.view_pairs import ViewPair
from components.models.backbone import ResNetBackbone, build
from components.training.optim import AdamW, Cosine
from tests.tolerances import FLOAT32, FLOAT64

EMBEDDINGS = "query.0.trunk.embeddings."


def mocov3(**settings):
    torch.manual_seed(0)
    return MoCoV3(build(TINY), MoCoV3Config(**{"hidden": 16, "dim": 3, "momentum": 0.9, **settings})).double().train()


def contrast(q, k, temperature):
    """Algorithm 1, one query at a time."""
    q, k = ([row / np.linalg.norm(row) for row in x] for x in (q, k))
    losses = [
        -math.log(np.exp(q[i] @ k[i] / temperature) / sum(np.exp(q[i] @ other / temperature) for other in k))
        for i in range(len(q))
    ]
    return 2 * temperature * np.mean(losses)


def paper(method, keys, views, temperature=0.2):
    q = [network(method.predictor, network(method.query, view)) for view in views]
    return contrast(q[0], keys[1], temperature) + contrast(q[1], keys[0], temperature)


@pytest.mark.parametrize("norm", [True, False])
def test_several_steps_equal_a_naive_derivation(norm):
    method = mocov3(predictor_norm=norm)
    average = {name: p.detach().clone() for name, p in method.query.named_parameters()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    steps = 4
    for step in range(steps):
        views = pixels(step)
        method.before_step(step / steps)
        expected = paper(method, [network(method.key.module, view) for view in views], views)
        optimizer.zero_grad()
        loss = method(views)["loss"]
        loss.backward()
        assert loss.item() == pytest.approx(expected, abs=FLOAT64)
        optimizer.step()
        method.after_step()
        m = 1 - 0.5 * (1 + math.cos(math.pi * step / steps)) * (1 - 0.9)  # adjust_moco_momentum
        for name, p in method.query.named_parameters():
            average[name] = m * average[name] + (1 - m) * p.detach()
        for name, p in method.key.module.named_parameters():
            assert torch.allclose(p, average[name], atol=FLOAT64), name


def test_gradients_are_those_of_the_paper_with_constant_keys():
    method, views = mocov3(), pixels(1, 9)
    with torch.no_grad():
        for p in method.key.parameters():
            p.add_(0.1 * torch.randn_like(p))
    keys = [network(method.key.module, view) for view in views]
    method(views)["loss"].backward()
    assert_gradients(method, lambda: paper(method, keys, views))
    assert all(p.grad is None for p in method.key.parameters())


def test_patch_embedding_and_positions_of_a_vit_are_frozen():
    """Section 4.2: the first layer is where training breaks, so it stays random; section 4.1: sine positions."""
    method = mocov3()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.5)
    method(pixels(0))["loss"].backward()
    optimizer.step()
    method.after_step()
    frozen = {name for name, p in method.query.named_parameters(prefix="query") if torch.equal(p, before[name])}
    assert frozen == {
        EMBEDDINGS + name
        for name in ("position_embeddings", "patch_embeddings.projection.weight", "patch_embeddings.projection.bias")
    }
    positions = before[EMBEDDINGS + "position_embeddings"][0]
    assert torch.equal(positions[0], torch.zeros(8).double())
    for place in range(4):  # a grid of 2 × 2; a width of 8: two rates for sines and cosines of column, then row
        angles = [where * rate for where in (place % 2, place // 2) for rate in (1, 0.01)]
        expected = [f(a) for pair in (angles[:2], angles[2:]) for f in (math.sin, math.cos) for a in pair]
        assert positions[1 + place].tolist() == pytest.approx(expected, abs=FLOAT32)
    free = mocov3(stop_grad_conv1=False)
    trained = {name for name, p in free.query[0].trunk.embeddings.named_parameters() if p.requires_grad}
    assert trained == {"cls_token", "patch_embeddings.projection.weight", "patch_embeddings.projection.bias"}


def test_nothing_is_frozen_in_a_resnet():
    resnet = build(ResNetBackbone(kind="resnet18", image_size=8))
    assert all(p.requires_grad for p in MoCoV3(resnet, MoCoV3Config(hidden=8, dim=4, layers=2)).query.parameters())


def test_defaults_are_the_papers():
    config = MoCoV3Config()
    assert (config.layers, config.hidden, config.dim, config.temperature, config.momentum) == (3, 4096, 256, 0.2, 0.99)
    schedule = Cosine(warmup=40 / 300)
    assert config.optimizer == AdamW(lr=1.5e-4, betas=(0.9, 0.999), weight_decay=0.1, decay_all=True, schedule=schedule)
    assert METHODS["mocov3"].method.views(config, 32) == ViewPair().build(32)
    method = mocov3()
    for head, linears in ((method.query[1], 3), (method.predictor, 2)):
        layers = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
        assert [layer.bias is None for layer in layers] == [True] * linears
        assert not head[-1].affine
    assert isinstance(mocov3(predictor_norm=False).predictor[-1], torch.nn.Linear)
