"""Against a re-derivation in loops, gradients by finite differences, in float64. Over ranks: test_over_ranks.py."""

import numpy as np
import pytest
import torch
from naive import TINY, assert_gradients, network, pixels

from components.methods import METHODS
from components.methods.barlowtwins import BarlowTwins, BarlowTwinsConfig, cross_correlation_loss
from components.models.backbone import ResNetBackbone, build
from components.training.optim import LARS, Cosine
from components.training.optim import build as optimizer_of
from tests.tolerances import FLOAT64


def twins(**settings):
    torch.manual_seed(0)
    return BarlowTwins(build(TINY), BarlowTwinsConfig(dim=6, **settings)).double().train()


def paper(method, views, weight):
    """Equations 1 and 2, one pair of outputs at a time."""
    a, b = (network([method.backbone, method.projector], view) for view in views)
    loss = 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            c = sum(x * y) / np.sqrt(sum(x**2)) / np.sqrt(sum(y**2))
            loss += (1 - c) ** 2 if i == j else weight * c**2
    return loss


@pytest.mark.parametrize("weight", [0.0051, 0.5])
def test_loss_and_gradients_are_the_papers(weight):
    method, views = twins(redundancy=weight), pixels(1, 9)
    loss = method(views)["loss"]
    loss.backward()
    # batch norm divides by √(variance + 1e-5) where the paper divides by the deviation: hence the looser bound
    assert loss.item() == pytest.approx(paper(method, views, weight), rel=1e-3)
    normalized = lambda: sum_of(*(network([method.backbone, method.projector], view) for view in views), weight)  # noqa: E731
    assert loss.item() == pytest.approx(normalized(), abs=FLOAT64)
    assert_gradients(method, normalized)


def sum_of(a, b, weight):
    c = np.array([[np.mean(x * y) for y in b.T] for x in a.T])
    return sum((1 - v) ** 2 if i == j else weight * v**2 for (i, j), v in np.ndenumerate(c))


def test_equal_and_decorrelated_outputs_have_loss_0():
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    loss, mean_correlation = cross_correlation_loss(signs, signs, 0.5)
    assert (loss.item(), mean_correlation.item()) == pytest.approx((0, 1), abs=FLOAT64)
    twice = signs[:, :1].expand(-1, 2)
    assert cross_correlation_loss(twice, twice, 0.5)[0].item() == pytest.approx(0.5 * 2)
    assert cross_correlation_loss(signs, -signs, 0.5)[0].item() == pytest.approx(2 * 4)


def test_biases_and_norms_have_their_own_learning_rate():
    """main.py: 0.2 for weights and 0.0048 for biases and norms."""
    method = twins()
    rates = {
        id(p): group["lr"]
        for group in optimizer_of(method, BarlowTwinsConfig().optimizer, 2048).param_groups
        for p in group["params"]
    }
    for p in method.parameters():
        assert rates[id(p)] == pytest.approx((0.2 if p.ndim > 1 else 0.0048) * 8)


def test_defaults_are_the_papers():
    config = BarlowTwinsConfig()
    assert (config.dim, config.redundancy) == (8192, 0.0051)
    schedule = Cosine(warmup=0.01, end=0.001)
    assert config.optimizer == LARS(lr=0.2, plain_lr=0.0048, momentum=0.9, weight_decay=1e-6, schedule=schedule)
    one, two = METHODS["barlowtwins"].method.views(config, 224)
    assert (one.blur, two.blur, one.solarize, two.solarize) == (1.0, 0.1, 0.0, 0.2)
    layers = [layer for layer in twins().projector if isinstance(layer, torch.nn.Linear)]
    assert [layer.bias is None for layer in layers] == [True] * 3
    assert not twins().projector[-1].affine


def test_chunks_raise_if_they_would_change_the_features():
    with pytest.raises(ValueError, match="chunk 4 would change the features, because the backbone's batch norm"):
        BarlowTwins(build(ResNetBackbone(kind="resnet18", image_size=8)), BarlowTwinsConfig(dim=6, chunk=4))


def test_chunks_give_the_loss_and_gradients_of_the_whole_batch():
    views, results = pixels(0, 6), []
    for chunk in (0, 4):
        method = twins(chunk=chunk)
        loss = method(views)["loss"]
        results.append([loss, *torch.autograd.grad(loss, list(method.parameters()))])
    assert all(torch.allclose(a, b, atol=FLOAT64) for a, b in zip(*results, strict=True))
