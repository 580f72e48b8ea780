import math

import pytest
import torch
from torch import nn

from components.training.optim import SGD, AdamW, Constant, Cosine, Steps, build, multiplier


def model():
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))


def test_the_rate_scales_with_the_batch():
    assert build(model(), SGD(lr=0.03), 512).param_groups[0]["lr"] == pytest.approx(0.06)
    assert build(model(), AdamW(lr=1e-3), 64).param_groups[0]["lr"] == pytest.approx(2.5e-4)


def test_biases_and_norms_are_not_decayed_unless_the_script_does_so():
    groups = build(model(), SGD(lr=1, weight_decay=0.1), 256).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 3)]
    groups = build(model(), SGD(lr=1, weight_decay=0.1, decay_all=True), 256).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 4)]


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


def test_frozen_parameters_are_not_given_to_the_optimizer():
    frozen = model()
    frozen[0].weight.requires_grad_(False)
    assert sum(len(group["params"]) for group in build(frozen, SGD(lr=1), 256).param_groups) == 3
    assert all(isinstance(group["params"][0], torch.Tensor) for group in build(frozen, SGD(lr=1), 256).param_groups)
