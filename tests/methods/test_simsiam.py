"""Against a re-derivation in numpy, gradients by finite differences, in float64."""

import numpy as np
import pytest
import torch
from naive import TINY, assert_gradients, network, pixels

from components.methods import METHODS
from components.methods.losses import feature_std
from components.methods.simsiam import SimSiam, SimSiamConfig
from components.models.backbone import build
from components.training.optim import SGD, Cosine, set_rates
from components.training.optim import build as optimizer_of
from tests.tolerances import FLOAT32, FLOAT64


def simsiam(seed=0):
    torch.manual_seed(seed)
    return SimSiam(build(TINY), SimSiamConfig(dim=6, predictor_hidden=4)).double().train()


def cosine(p, z):
    return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(p, z, strict=True)])


def paper(method, projections, views):
    """Algorithm 1; projections: constants, which is what stop-gradient means."""
    p = [network(method.predictor, network(method.encoder, view)) for view in views]
    return -cosine(p[0], projections[1]) / 2 - cosine(p[1], projections[0]) / 2


def test_loss_and_gradients_over_several_steps_are_the_papers():
    method = simsiam()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.3)
    for step in range(3):
        views = pixels(step)
        projections = [network(method.encoder, view) for view in views]
        optimizer.zero_grad()
        loss = method(views)["loss"]
        loss.backward()
        assert loss.item() == pytest.approx(paper(method, projections, views), abs=FLOAT64)
        assert_gradients(method, lambda: paper(method, projections, views), per=1)  # noqa: B023
        optimizer.step()
        method.after_step()


def test_without_stop_gradient_the_gradient_differs():
    """The collapse of figure 2 is one forgotten detach away, and no loss shows it in the first step."""
    method, views = simsiam(), pixels(0)
    z = [method.encoder(view) for view in views]
    p = [method.predictor(x) for x in z]
    cos = torch.nn.functional.cosine_similarity
    free = -(cos(p[0], z[1]).mean() + cos(p[1], z[0]).mean()) / 2
    wrong = torch.autograd.grad(free, list(method.encoder.parameters()))
    loss = method(views)["loss"]
    right = torch.autograd.grad(loss, list(method.encoder.parameters()))
    assert loss.item() == pytest.approx(free.item())
    assert max((a - b).abs().max().item() for a, b in zip(wrong, right, strict=True)) > 1e-3


def test_the_predictors_learning_rate_is_constant():
    method = simsiam()
    settings = SimSiamConfig().optimizer
    optimizer = optimizer_of(method, settings, 256)
    for progress in (0.0, 0.5, 0.99):
        set_rates(optimizer, settings, progress)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, p in method.named_parameters():
            expected = 0.05 * (1 if name.startswith("predictor.") else (1 + np.cos(np.pi * progress)) / 2)
            assert rates[id(p)] == pytest.approx(expected), name


def test_feature_std_shows_a_collapse():
    """Section 4.1: 1/√d for outputs in all directions, 0 for one constant vector."""
    torch.manual_seed(0)
    z = torch.randn(4000, 64)
    assert feature_std(z).item() == pytest.approx(1, abs=0.02)  # of 4000 draws: 1 / √8000 for each of 64
    assert feature_std(torch.ones(8, 64) * 3).item() == pytest.approx(0, abs=FLOAT32)
    rows = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)
    assert feature_std(z).item() == pytest.approx(rows.std(0, ddof=1).mean() * 8, rel=FLOAT32)
    method, views = simsiam(), pixels(0)
    z = network(method.encoder, views[0])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    assert method(views)["feature_std"].item() == pytest.approx(z.std(0, ddof=1).mean() * 6**0.5)


def test_defaults_are_the_papers():
    config = SimSiamConfig()
    assert (config.dim, config.predictor_hidden) == (2048, 512)
    assert config.optimizer == SGD(
        lr=0.05, momentum=0.9, weight_decay=1e-4, decay_all=True, schedule=Cosine(), constant_lr=("predictor.",)
    )
    one, two = METHODS["simsiam"].method.views(config, 224)
    assert one == two
    assert (one.crop, one.flip, one.gray, one.blur, one.solarize) == ((0.2, 1.0), 0.5, 0.2, 0.5, 0.0)
    assert vars(one.jitter) == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
    method = simsiam()
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(layer).__name__ for layer in method.encoder[1]] == [*block, *block, "Linear", "BatchNorm1d"]
    assert [layer.bias is None for layer in method.encoder[1] if isinstance(layer, torch.nn.Linear)] == [True] * 3
    assert not method.encoder[1][-1].affine
    assert [type(layer).__name__ for layer in method.predictor] == [*block, "Linear"]
    assert [method.predictor[i].bias is None for i in (0, 3)] == [True, False]
