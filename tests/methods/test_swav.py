"""SwAV against an independent derivation in float64."""

import copy

import numpy as np
import pytest
import torch

from components.methods import METHODS
from components.methods.swav import SwAV, SwAVConfig
from components.models.backbone import ViTBackbone, build
from components.training.optim import LARS, Cosine
from tests.methods.naive import assert_directional_gradients, cross_entropy, naive_sinkhorn
from tests.tolerances import FLOAT64

TINY = ViTBackbone(image_size=16, patch_size=8, width=8, depth=1, heads=2)


def swav(**settings):
    torch.manual_seed(0)
    config = SwAVConfig(**{"hidden": 6, "dim": 4, "prototypes": 5, "local_crops": 2, **settings})
    return SwAV(build(TINY), config).double().train()


def pixels(seed, count=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, side, side, generator=generator).double() * 255 for side in (16, 16, 8, 8)]


def l2_normalize(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


@torch.no_grad()
def features_of(method, batch):
    """Linear, batch norm with the statistics of all crops, ReLU, linear; unit length. [V, B, D]"""
    first, norm, _, last = method.projector
    x = torch.cat([method.backbone(view) for view in batch]).numpy() @ first.weight.numpy().T + first.bias.numpy()
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + norm.eps) * norm.weight.numpy() + norm.bias.numpy()
    x = np.maximum(x, 0) @ last.weight.numpy().T + last.bias.numpy()
    return l2_normalize(x).reshape(len(batch), len(batch[0]), -1)


def naive_loss(method, batch, codes):
    """Equation 1 with 2: the code of either global crop, predicted from every other crop."""
    z, c = features_of(method, batch), method.prototypes.weight.detach().numpy()
    return np.mean(
        [
            cross_entropy(codes[i][n], c @ z[v][n] / 0.1)
            for i in range(2)
            for v in range(len(batch))
            if i != v
            for n in range(len(batch[0]))
        ]
    )


def codes_of(method, z, queues):
    c = method.prototypes.weight.detach().numpy()
    count = z.shape[1]
    return [naive_sinkhorn(np.concatenate([*queues[i], z[i]]) @ c.T, 0.05)[-count:] for i in range(2)]


def step(method, batch, progress, lr=0.5):
    method.before_step(progress)
    loss = method(batch)["loss"]
    method.zero_grad()
    loss.backward()
    method.after_backward()
    torch.optim.SGD(method.parameters(), lr=lr).step()
    method.after_step()
    return loss.item()


def test_several_steps_with_a_queue_equal_a_naive_derivation():
    method = swav(queue=8, queue_from=0.3, freeze_prototypes=0.0)
    past = [[], []]
    for number, progress in enumerate((0.0, 0.2, 0.4, 0.6)):
        batch = pixels(number)
        z = features_of(method, batch)
        joined = [past[i][-2:] if progress >= 0.3 else [] for i in range(2)]
        expected = naive_loss(method, batch, codes_of(method, z, joined))
        assert step(method, batch, progress) == pytest.approx(expected, abs=FLOAT64)
        for i in range(2):
            past[i].append(z[i])
            held = np.concatenate(past[i][-2:])
            if number:
                assert np.allclose(np.sort(method.queues[i].items.numpy(), 0), np.sort(held, 0), atol=FLOAT64)


def test_a_queue_is_ignored_until_it_is_full():
    method, other = swav(queue=8, queue_from=0.0), swav()
    first = step(method, pixels(0), 0.5), step(other, pixels(0), 0.5)
    second = step(method, pixels(1), 0.5), step(other, pixels(1), 0.5)
    # the queue's rows, which have no share yet, change the order of the sums
    assert first[0] == pytest.approx(first[1], rel=FLOAT64)
    assert second[0] == pytest.approx(second[1], rel=FLOAT64)  # 4 of 8
    assert step(method, pixels(2), 0.5) != pytest.approx(step(other, pixels(2), 0.5), rel=1e-6)


def test_gradients_are_the_finite_differences_of_the_naive_loss():
    method, batch = swav(), pixels(0)
    codes = codes_of(method, features_of(method, batch), [[], []])
    assert_directional_gradients(method, method(batch)["loss"], lambda: naive_loss(method, batch, codes))


def test_prototypes_have_length_1_at_every_step_and_are_frozen_at_first():
    method = swav(freeze_prototypes=0.25)
    for progress, moves in ((0.0, False), (0.2, False), (0.25, True), (0.9, True)):
        before = copy.deepcopy(method.prototypes.weight)
        assert torch.allclose(before.norm(dim=1), torch.ones(5).double())
        step(method, pixels(1), progress)
        assert torch.allclose(before, method.prototypes.weight, atol=FLOAT64) != moves


def test_queues_and_their_counter_are_in_the_state():
    assert {"queues.0.items", "queues.1.cursor", "num_queued"} <= set(swav(queue=8).state_dict())
    assert swav().needs_full_batch


def test_defaults_are_the_papers():
    config = SwAVConfig()
    assert (config.hidden, config.dim, config.prototypes, config.temperature) == (2048, 128, 3000, 0.1)
    assert (config.epsilon, config.rounds, config.queue) == (0.05, 3, 0)
    assert config.queue_from == pytest.approx(15 / 200)
    assert config.freeze_prototypes == pytest.approx(313 / (800 * 1_281_167 // 4096), rel=0.01)  # rounded
    assert config.optimizer == LARS(
        lr=0.3, weight_decay=1e-6, decay_all=True, trust=1e-3, schedule=Cosine(warmup=10 / 800, end=1e-3)
    )
    views = METHODS["swav"].method.views(config, 224)
    assert [(view.size, view.crop) for view in views] == [(224, (0.14, 1.0))] * 2 + [(96, (0.05, 0.14))] * 6
    for view in views:
        jitter = view.jitter
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p) == (
            0.8,
            0.8,
            0.8,
            0.2,
            0.8,
        )
        assert (view.gray, view.blur, view.flip) == (0.2, 0.5, 0.5)


def test_an_impossible_queue_raises_with_advice():
    check = METHODS["swav"].method.check
    with pytest.raises(ValueError, match=r"queue 3840 is longer than the data .1000 photos.*try 256"):
        check(SwAVConfig(queue=3840), 1000, 256, 1)
    with pytest.raises(ValueError, match="queue 100 is shorter than batch_size 256; try 1024, or 0"):
        check(SwAVConfig(queue=100), 1000, 256, 1)
    check(SwAVConfig(), 1000, 256, 1)
