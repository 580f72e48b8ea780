import math

import pytest
import torch
from torch import nn

from components.training.optim import LARS, SGD, AdamW, Constant, Cosine, Steps, build, clip, multiplier, set_rates
from tests.tolerances import FLOAT32, FLOAT64


def model():
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))


def test_the_rate_scales_with_the_batch():
    assert build(model(), SGD(lr=0.03), 512).param_groups[0]["lr"] == pytest.approx(0.06)
    assert build(model(), AdamW(lr=1e-3), 64).param_groups[0]["lr"] == pytest.approx(2.5e-4)


def test_biases_and_norms_are_not_decayed_unless_the_script_does_so():
    groups = build(model(), SGD(lr=1, weight_decay=0.1), 256).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 3)]
    groups = build(model(), SGD(lr=1, weight_decay=0.1, decay_all=True), 256).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.1, 3)]


def test_schedules_equal_their_closed_forms_point_by_point():
    for step in range(101):
        progress = step / 101
        cosine = multiplier(Cosine(warmup=0.1, end=0.2), progress)
        if progress < 0.1:
            assert cosine == pytest.approx(progress / 0.1)
        else:
            assert cosine == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9)))
        steps = multiplier(Steps(milestones=(0.6, 0.8)), progress)
        assert steps == pytest.approx(1 if progress < 0.6 else 0.1 if progress < 0.8 else 0.01)
        assert multiplier(Constant(), progress) == 1


def test_the_optimizer_has_no_frozen_parameters():
    frozen = model()
    frozen[0].weight.requires_grad_(False)
    assert sum(len(group["params"]) for group in build(frozen, SGD(lr=1), 256).param_groups) == 3
    assert all(isinstance(group["params"][0], torch.Tensor) for group in build(frozen, SGD(lr=1), 256).param_groups)


@pytest.mark.parametrize("classic", [True, False])
def test_lars_equals_the_formulas_of_simclr_and_of_barlow_twins(classic):
    """Through a warm-up, where the two differ: lars_optimizer.py with its default classic_momentum, and main.py."""
    torch.manual_seed(0)
    net = model().double()
    config = LARS(lr=4.0, weight_decay=0.1, plain_lr=0.05, classic_momentum=classic, schedule=Cosine(warmup=0.5))
    optimizer = build(net, config, 512)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in weights.items()}
    x = torch.randn(5, 2).double()
    for step in range(1, 21):
        set_rates(optimizer, config, step / 24)
        optimizer.zero_grad()
        net(x).square().sum().backward()
        for name, p in net.named_parameters():
            g = p.grad.clone()
            lr = (8.0 if p.ndim > 1 else 0.1) * multiplier(config.schedule, step / 24)
            if p.ndim > 1:
                g += 0.1 * weights[name]
                g *= 1e-3 * weights[name].norm() / g.norm()
            if classic:
                velocity[name] = 0.9 * velocity[name] + lr * g
                weights[name] = weights[name] - velocity[name]
            else:
                velocity[name] = 0.9 * velocity[name] + g
                weights[name] = weights[name] - lr * velocity[name]
        optimizer.step()
        for name, p in net.named_parameters():
            assert torch.allclose(p, weights[name], rtol=0, atol=FLOAT64), (step, name)


def test_lars_does_not_scale_the_update_of_a_zero_weight():
    net = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(net.weight)
    optimizer = build(net, LARS(lr=1.0), 256)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(net.weight, -torch.ones(2, 2))  # a ratio of 0 would leave it at zero for ever


def test_rates_scale_with_the_square_root_of_the_batch_if_set():
    assert build(model(), SGD(lr=0.1, scaling="sqrt"), 1024).param_groups[0]["peak"] == pytest.approx(0.2)
    assert build(model(), SGD(lr=0.1), 1024).param_groups[0]["peak"] == pytest.approx(0.4)


def test_weight_decay_follows_its_cosine_and_constant_rates_stay():
    net = nn.Sequential(model(), model())
    config = AdamW(lr=1.0, weight_decay=0.04, final_weight_decay=0.4, constant_lr=("1.",))
    optimizer = build(net, config, 256)
    for progress in (0.0, 0.25, 0.9):
        set_rates(optimizer, config, progress)
        by_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for name, p in net.named_parameters():
            group = by_parameter[id(p)]
            decay = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * progress)) / 2 if p.ndim > 1 else 0.0
            rate = 1.0 if name.startswith("1.") else (1 + math.cos(math.pi * progress)) / 2
            assert (group["lr"], group["weight_decay"]) == pytest.approx((rate, decay)), name


def test_clipping_all_together_or_each_alone():
    for each in (False, True):
        net = model()
        optimizer = build(net, SGD(lr=1.0, clip=0.5, clip_each=each), 256)
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        clip(optimizer, SGD(lr=1.0, clip=0.5, clip_each=each))
        norms = [p.grad.norm().item() for p in net.parameters()]  # torch adds 1e-6 to a norm before it divides
        if each:
            assert norms == pytest.approx([0.5] * len(norms), rel=FLOAT32)
        else:
            assert sum(norm**2 for norm in norms) == pytest.approx(0.25, rel=FLOAT32)


def test_clipping_each_alone_treats_q_k_and_v_as_one_parameter():
    """As in the references, which compute them with one linear layer: utils.clip_gradients of DINO and iBOT."""
    torch.manual_seed(0)
    attention = nn.ModuleDict({f"{name}_proj": nn.Linear(4, 4) for name in "qkvo"})
    net = nn.ModuleDict({"attention": attention, "proj": nn.Linear(4, 4)}).double()
    for number, p in enumerate(net.parameters()):
        p.grad = torch.randn_like(p) * (number % 4 + 0.1)
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    norms = {name: gradient.norm() for name, gradient in gradients.items()}
    for kind in ("weight", "bias"):
        names = [f"attention.{name}_proj.{kind}" for name in "qkv"]
        norms |= dict.fromkeys(names, torch.cat([gradients[name] for name in names]).norm())
    config = AdamW(lr=1.0, clip=1.5, clip_each=True)
    clip(build(net, config, 256), config)
    for name, p in net.named_parameters():
        expected = gradients[name] * min(1.0, 1.5 / (norms[name].item() + 1e-6))
        assert torch.allclose(p.grad, expected, atol=FLOAT64), name
    assert 1.49 < torch.cat([attention[f"{name}_proj"].weight.grad for name in "qkv"]).norm() < 1.5 + 1e-6


def test_a_name_that_no_parameter_has_is_refused():
    with pytest.raises(ValueError, match=r"no parameter's name begins with 'predicter.'; there are: 0., 1."):
        build(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), SGD(lr=1, constant_lr=("0.", "predicter.")), 256)


def test_milestones_are_fractions_of_the_run():
    with pytest.raises(ValueError, match="less than 1"):
        Steps(milestones=(30, 60))
