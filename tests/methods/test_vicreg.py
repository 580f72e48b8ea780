"""VICReg against loops, gradients by finite differences, in float64. Over ranks: test_over_ranks.py."""

import numpy as np
import pytest
import torch
from naive import TINY, assert_gradients, network, pixels

from components.methods import METHODS
from components.methods.vicreg import VICReg, VICRegConfig, vicreg_terms
from components.methods.view_pairs import ViewPair
from components.models.backbone import build
from components.training.optim import LARS, Cosine
from tests.tolerances import FLOAT64


def vicreg(**settings):
    torch.manual_seed(0)
    return VICReg(build(TINY), VICRegConfig(dim=5, **settings)).double().train()


def naive(a, b):
    """Equations 1 to 5 as sums; variance and covariance as the reference code weighs them (mean, sum)."""
    n, d = a.shape
    invariance = sum((a[i, j] - b[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    variance = covariance = 0.0
    for z in (a, b):
        mean = z.mean(0)
        for j in range(d):
            deviation = np.sqrt(sum((z[:, j] - mean[j]) ** 2) / (n - 1) + 1e-4)
            variance += max(0, 1 - deviation) / d / 2
            for k in range(d):
                if k != j:
                    covariance += (sum((z[:, j] - mean[j]) * (z[:, k] - mean[k])) / (n - 1)) ** 2 / d
    return invariance, variance, covariance


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 2.0, 3.0)])
def test_loss_and_gradients_are_the_papers(weights):
    method = vicreg(**dict(zip(("invariance", "variance", "covariance"), weights, strict=True)))
    views = pixels(0, 6)
    losses = method(views)
    losses["loss"].backward()

    def paper():
        terms = naive(*(network([method.backbone, method.expander], view) for view in views))
        return sum(w * x for w, x in zip(weights, terms, strict=True))

    assert losses["loss"].item() == pytest.approx(paper(), abs=FLOAT64)
    terms = naive(*(network([method.backbone, method.expander], view) for view in views))
    assert [losses[name].item() for name in ("invariance", "variance", "covariance")] == pytest.approx(terms)
    assert_gradients(method, paper)


def test_each_term_penalizes_its_own_kind_of_collapse():
    """Constant outputs cost variance, copied outputs covariance, views that differ invariance, and nothing else."""
    torch.manual_seed(0)
    still = torch.ones(16, 4).double()
    copied = torch.randn(16, 1).double().expand(-1, 4) * 3
    signs = torch.cat([2 * torch.eye(4), -2 * torch.eye(4)]).double() * 2
    for z, expected in ((still, (False, True, False)), (copied, (False, False, True)), (signs, (False, False, False))):
        assert tuple(value.item() > 1e-6 for value in vicreg_terms(z, z)) == expected
    assert vicreg_terms(still, still)[1].item() == pytest.approx(1 - 1e-4**0.5)
    assert tuple(value.item() > 1e-6 for value in vicreg_terms(signs, -signs)) == (True, False, False)


def test_defaults_are_the_papers():
    config = VICRegConfig()
    assert (config.dim, config.invariance, config.variance, config.covariance) == (8192, 25.0, 25.0, 1.0)
    assert config.optimizer == LARS(lr=0.2, momentum=0.9, weight_decay=1e-6, schedule=Cosine(warmup=0.01, end=0.001))
    assert METHODS["vicreg"].method.views(config, 32) == ViewPair().build(32)
    layers = [layer for layer in vicreg().expander if isinstance(layer, torch.nn.Linear)]
    assert [layer.bias is None for layer in layers] == [False, False, True]
    assert isinstance(vicreg().expander[-1], torch.nn.Linear)


def test_weights_that_allow_collapse_raise():
    for name in ("invariance", "variance"):
        with pytest.raises(ValueError, match="without invariance or without variance all photos get the same features"):
            VICReg.check(VICRegConfig(**{name: 0}), 100, 8, 1)
