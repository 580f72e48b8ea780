"""Against the paper's formulas written out as loops."""

import math

import pytest
import torch

from components.methods import METHODS
from components.methods.losses import nt_xent
from components.methods.simclr import SimCLRConfig
from components.training.optim import SGD, Cosine


def by_the_paper(a, b, temperature):
    """Equation 1, one anchor at a time."""
    z = [row / row.norm() for pair in zip(a, b, strict=True) for row in pair]  # 2k-1 and 2k are a pair
    total = 0.0
    for i in range(len(z)):
        partner = i + 1 if i % 2 == 0 else i - 1
        above = torch.exp(z[i] @ z[partner] / temperature)
        below = sum(torch.exp(z[i] @ z[k] / temperature) for k in range(len(z)) if k != i)
        total = total - torch.log(above / below)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient_are_the_papers(temperature):
    torch.manual_seed(0)
    a, b = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    ours, wanted = nt_xent(a, b, temperature), by_the_paper(a, b, temperature)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-6)
    for got, want in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(wanted, (a, b)), strict=True):
        assert torch.allclose(got, want, atol=1e-6)


def test_pairs_that_agree_while_all_else_is_orthogonal_have_a_closed_form():
    eye = torch.eye(4)
    wanted = -math.log(math.exp(2) / (math.exp(2) + 6))  # one partner at cosine 1, six others at 0, temperature 1/2
    assert nt_xent(eye, eye, 0.5).item() == pytest.approx(wanted)


def test_defaults_are_the_papers():
    config = SimCLRConfig()
    assert (config.temperature, config.dim, config.color_strength) == (0.1, 128, 1.0)
    assert config.optimizer == SGD(lr=0.3, weight_decay=1e-6, schedule=Cosine(warmup=0.1))
    view = METHODS["simclr"].method.views(config, 224)[0]
    jitter = view.jitter
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p) == (0.8, 0.8, 0.8, 0.2, 0.8)
    assert (view.crop, view.gray, view.blur, view.flip) == ((0.08, 1.0), 0.2, 0.5, 0.5)


def test_a_batch_without_others_is_refused():
    with pytest.raises(ValueError, match="batch_size 2 over 2 processes leaves no other picture"):
        METHODS["simclr"].method.check(SimCLRConfig(), 100, 2, 2)
