"""DINO is compared with an independent derivation in float64, and with the known defects of other libraries."""

import copy
import math
import re

import numpy as np
import pytest
import torch

from components.methods import METHODS
from components.methods.dino import DINO, DINOConfig
from components.methods.distillation import describe_targets, temperature
from components.methods.losses import across_views, entropies, sinkhorn
from components.methods.multicrop import forward_by_size
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.models.heads import PrototypeHead
from components.training import optim
from components.training.optim import AdamW, Cosine
from tests.methods.naive import assert_directional_gradients, cross_entropy, dino_head, naive_sinkhorn, softmax
from tests.tolerances import FLOAT32, FLOAT64

TINY = ViTBackbone(image_size=16, patch_size=8, width=8, depth=1, heads=2)


def dino(shape=TINY, **settings):
    torch.manual_seed(0)
    config = DINOConfig(**{"hidden": 6, "bottleneck": 4, "prototypes": 5, "local_crops": 2, **settings})
    method = DINO(build(shape), config).double().train()
    for p in method.student[1].mlp.parameters():
        p.data += 0.3 * torch.randn_like(p)  # initially all outputs are nearly equal
    method.teacher.module.load_state_dict(method.student.state_dict())
    return method


def pixels(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, side, side, generator=generator).double() * 255 for side in (16, 16, 8, 8)]


def step(method, batch, progress, lr=0.5):
    method.before_step(progress)
    losses = method(batch)
    method.zero_grad()
    losses["loss"].backward()
    method.after_backward()
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr).step()
    method.after_step()
    return losses


def teacher_targets(method, batch, teacher, center, t):
    """Algorithm 1's centering and sharpening, or Sinkhorn: targets of both global views, and the mean of the logits."""
    logits = np.concatenate([dino_head(teacher[1], teacher[0](view)) for view in batch[:2]])
    if method.config.targets == "sinkhorn":
        return np.split(naive_sinkhorn(logits, t), 2), logits.mean(0)
    return np.split(np.stack([softmax((row - center) / t) for row in logits]), 2), logits.mean(0)


def naive_loss(method, batch, targets):
    """Equation 3, picture by picture and pair by pair."""
    student = [dino_head(method.student[1], method.student[0](view)) for view in batch]
    pairs = [(i, v) for i in range(2) for v in range(len(batch)) if i != v]
    pictures = range(len(batch[0]))
    return np.mean([cross_entropy(targets[i][n], student[v][n] / 0.1) for i, v in pairs for n in pictures])


@pytest.mark.parametrize("targets", ["centering", "sinkhorn"])
def test_several_steps_equal_a_naive_derivation(targets):
    method = dino(targets=targets, momentum=0.8, center_momentum=0.7, freeze_last=0.0)
    teacher, center = copy.deepcopy(method.student), np.zeros(5)
    for number, progress in enumerate((0.0, 0.05, 0.4, 0.9)):
        t = 0.04 + 0.03 * min(1, progress / 0.1)
        m = 1 - 0.2 * (math.cos(math.pi * progress) + 1) / 2
        batch = pixels(number)
        with torch.no_grad():
            targets, mean = teacher_targets(method, batch, teacher, center, t)
            expected = naive_loss(method, batch, targets)
        losses = step(method, batch, progress)
        assert losses["loss"].item() == pytest.approx(expected, abs=FLOAT64)
        center = 0.7 * center + 0.3 * mean
        assert np.allclose(method.targets.center.mean.numpy(), center, atol=FLOAT64)
        for average, weight in zip(teacher.parameters(), method.student.parameters(), strict=True):
            average.data.mul_(m).add_(weight.data, alpha=1 - m)
        for average, actual in zip(teacher.parameters(), method.teacher.parameters(), strict=True):
            assert torch.allclose(average, actual, atol=FLOAT64)


@pytest.mark.parametrize("targets", ["centering", "sinkhorn"])
def test_gradients_are_the_finite_differences_of_the_naive_loss(targets):
    method, batch = dino(targets=targets), pixels(0)
    with torch.no_grad():
        targets = teacher_targets(method, batch, method.teacher.module, np.zeros(5), 0.04)[0]

    @torch.no_grad()
    def naive():
        return naive_loss(method, batch, targets)

    assert_directional_gradients(method, method(batch)["loss"], naive)


def test_schedules_equal_their_closed_forms_point_by_point():
    config = DINOConfig()
    for epoch in range(300):  # main_dino.py: np.linspace(0.04, 0.07, 30), then 0.07
        expected = 0.04 + 0.03 * epoch / 30 if epoch < 30 else 0.07
        assert temperature(config, epoch / 300) == pytest.approx(expected, abs=FLOAT64)
    assert temperature(DINOConfig(temperature_warmup=0), 0.0) == 0.07
    method, seen = dino(momentum=0.996), []
    method.teacher.update = lambda student, momentum: seen.append(momentum)
    for progress in np.linspace(0, 1, 11):
        method.before_step(float(progress))
        method(pixels(0))
        method.after_step()
    assert seen == pytest.approx([1 - 0.004 * (math.cos(math.pi * p) + 1) / 2 for p in np.linspace(0, 1, 11)])


def test_uniform_outputs_cost_log_k_and_entropies_show_both_kinds_of_collapse():
    uniform = torch.full((2, 3, 7), 1 / 7)
    assert across_views(uniform, torch.zeros(4, 3, 7), 0.1).item() == pytest.approx(math.log(7), rel=FLOAT32)
    assert [float(x) for x in entropies(uniform[0])] == pytest.approx([1, 1], abs=FLOAT32)
    alike = torch.eye(7)[[2, 2, 2]]
    assert [float(x) for x in entropies(alike)] == pytest.approx([0, 0], abs=FLOAT32)
    assert [float(x) for x in entropies(torch.eye(7))] == pytest.approx([0, 1], abs=FLOAT32)


@pytest.mark.parametrize("local_crops", [0, 2])
def test_the_logged_divergence_is_the_mean_over_pairs_of_crops(local_crops):
    method = dino(local_crops=local_crops)
    for parameter in method.student[1].parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)  # so that it differs from its teacher
    batch, seen = pixels(0)[: 2 + local_crops], {}
    record = method.targets.register_forward_hook(lambda _, __, targets: seen.update(targets=targets))
    losses = method(batch)
    record.remove()
    targets = seen["targets"].unflatten(0, (2, -1)).detach().numpy()
    logits = method.student[1](forward_by_size(method.student[0], batch)).unflatten(0, (len(batch), -1)).detach()
    pairs = [(t, v) for t in range(2) for v in range(len(batch)) if v != t]
    divergence = [
        sum(p * math.log(p / q) for p, q in zip(target, softmax(row / 0.1), strict=True))
        for t, v in pairs
        for target, row in zip(targets[t], logits[v].numpy(), strict=True)
    ]
    expected = sum(divergence) / len(divergence) / math.log(5)
    assert expected > 0.01
    assert losses["kl_divergence"].item() == pytest.approx(expected, abs=1e-6)
    assert not losses["kl_divergence"].requires_grad
    total = losses["entropy"] + losses["kl_divergence"]
    assert losses["loss"].item() == pytest.approx(total.item() * math.log(5), rel=FLOAT64)


def test_a_student_that_agrees_with_its_targets_has_no_divergence():
    targets = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    cross_entropy = across_views(targets.expand(2, 6, 4), targets.log().expand(2, 6, 4), 1.0)
    assert describe_targets(targets, cross_entropy)["kl_divergence"].item() == pytest.approx(0, abs=FLOAT32)


def test_sinkhorn_equals_the_pseudo_code_and_assigns_evenly():
    scores = torch.rand(12, 5, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    assignments = sinkhorn(scores, 0.3)
    assert np.allclose(assignments.numpy(), naive_sinkhorn(scores.numpy(), 0.3), atol=FLOAT64)
    assert torch.allclose(assignments.sum(1), torch.ones(12).double())
    assert torch.allclose(sinkhorn(scores, 0.3, rounds=200).sum(0), torch.full((5,), 12 / 5).double())
    assert sinkhorn(torch.zeros(0, 5), 0.04).shape == (0, 5)
    near = 2 * torch.eye(3).repeat(2, 1) - 1
    assert torch.allclose(sinkhorn(near, 0.02), torch.eye(3).repeat(2, 1), atol=FLOAT32)
    assert torch.allclose(sinkhorn(near - near.eq(1) * 1.9, 0.02).sum(1), torch.ones(6))  # all far: nothing underflows
    with pytest.raises(ValueError, match=r"temperature is 0.01; allowed: 0.02 or more"):
        sinkhorn(near, 0.01)


def test_views_of_one_size_share_one_forward_pass_and_keep_their_order():
    sizes = []

    def net(x):
        sizes.append(tuple(x.shape))
        return x.mean((1, 2, 3))

    views = pixels(0)
    actual = forward_by_size(net, views)
    assert sizes == [(6, 3, 16, 16), (6, 3, 8, 8)]
    expected = torch.stack([view.mean((1, 2, 3)) for view in views])
    assert torch.allclose(actual.view(4, 3), expected, rtol=FLOAT64)


def test_prototypes_are_weight_normalized_with_a_gain_that_is_not_learned():
    """stable-pretraining: without weight norm a prototype's length makes it louder."""
    head, x = PrototypeHead(8, 6, 4, 5).double(), torch.randn(3, 8).double()
    before = head(x)
    head.last.weight.data *= torch.tensor([0.1, 2, 30, 4, 5]).double()[:, None]
    assert torch.allclose(head(x), before)
    assert before.abs().max() <= 1
    assert {name for name, p in head.named_parameters() if p.ndim > 1 and p.shape[0] == 5} == {"last.weight"}
    assert all(p.ndim > 1 or "bias" in name for name, p in head.named_parameters())  # no gain anywhere


def test_the_heads_initial_weights_are_the_papers():
    """lightly #1729: a deviation of 0.2."""
    torch.manual_seed(0)
    head = PrototypeHead(64, 256, 32, 128)
    for layer in head.mlp[::2]:
        # the deviation of 8192 draws or more differs by 1 % from that of their distribution
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()


def test_the_last_layer_is_frozen_at_first():
    """stable-pretraining: no freeze."""
    method = dino(freeze_last=0.25)
    for progress, moves in ((0.0, False), (0.24, False), (0.25, True), (0.9, True)):
        before = method.student[1].last.weight.clone()
        others = method.student[1].mlp[0].weight.clone()
        step(method, pixels(1), progress)
        assert torch.equal(before, method.student[1].last.weight) != moves
        assert not torch.equal(others, method.student[1].mlp[0].weight)


def test_the_teachers_last_layer_is_updated():
    """lightly: it never changed."""
    method = dino(momentum=0.5, freeze_last=0.0)
    before = method.teacher.module[1].last.weight.clone()
    step(method, pixels(1), 0.0)
    expected = 0.5 * before + 0.5 * method.student[1].last.weight
    assert torch.allclose(method.teacher.module[1].last.weight, expected)
    assert not torch.equal(before, expected)


def test_weight_decay_rises_by_a_cosine_and_each_gradient_is_clipped_alone():
    """stable-pretraining: no schedule of weight decay."""
    method, config = dino(), DINOConfig().optimizer
    optimizer = optim.build(method, config, 1024)
    for progress in np.linspace(0, 1, 11):
        optim.set_rates(optimizer, config, float(progress))
        expected = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            assert group["weight_decay"] == pytest.approx(expected if group["decayed"] else 0)
    assert {group["decayed"] for group in optimizer.param_groups} == {True, False}
    for p in method.student.parameters():
        p.grad = torch.full_like(p, 10.0)
    optim.clip(optimizer, config)
    for name, p in method.student.named_parameters():
        # torch adds 1e-6 to the norm, which is 10 or more, before it divides
        fused = re.search(r"\.[qkv]_proj\.", name)  # clipped as one parameter of three equal parts
        assert p.grad.norm().item() == pytest.approx(3.0 / (3**0.5 if fused else 1), rel=FLOAT32), name


def test_student_and_teacher_share_nothing():
    """In lightly #1596 student and teacher shared a batch norm. Here the head has none, and each ResNet has its own."""
    method = dino(ResNetBackbone(kind="resnet18", image_size=16))
    student = {t.data_ptr() for t in method.student.state_dict().values()}
    assert not student & {t.data_ptr() for t in method.teacher.state_dict().values()}
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in method.student[1].modules())
    before = copy.deepcopy(dict(method.teacher.named_buffers()))
    method.student(pixels(0)[0])
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.named_buffers())
    assert method.needs_full_batch


def test_teacher_and_center_are_updated_once_a_step_for_any_number_of_micro_batches():
    """lightly-train: once a micro-batch."""
    whole, parts = dino(), dino()
    batch = pixels(3, 4)
    assert whole.needs_full_batch == ""
    assert dino(targets="sinkhorn").needs_full_batch
    whole(batch)
    whole.after_step()
    before = copy.deepcopy(parts.state_dict())
    for part in zip(*(view.chunk(2) for view in batch), strict=True):
        parts(list(part))
    assert all(torch.equal(value, before[name]) for name, value in parts.state_dict().items())  # forward moves nothing
    parts.after_step()
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, parts.state_dict()[name], atol=FLOAT64), name


def test_the_center_is_updated_after_the_loss():
    method = dino()
    first = method(pixels(0))["loss"]
    assert torch.equal(first, method(pixels(0))["loss"])
    method.after_step()
    assert not torch.equal(first, method(pixels(0))["loss"])


def test_the_teacher_gets_no_gradient_and_is_kept():
    method = dino()
    method(pixels(0))["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert method.keep() is method.teacher.module[0]


def test_defaults_are_the_papers():
    config = DINOConfig()
    assert (config.hidden, config.bottleneck, config.prototypes) == (2048, 256, 65536)
    assert (config.student_temperature, config.teacher_temperature, config.temperature_warmup) == (
        0.1,
        (0.04, 0.07),
        0.1,
    )
    assert (config.momentum, config.center_momentum, config.freeze_last) == (0.996, 0.9, pytest.approx(1 / 300))
    assert config.optimizer == AdamW(
        lr=5e-4,
        weight_decay=0.04,
        final_weight_decay=0.4,
        clip=3.0,
        clip_each=True,
        schedule=Cosine(warmup=1 / 30, end=5e-4),
    )
    first, second, *rest = METHODS["dino"].method.views(config, 224)
    assert (first.size, first.crop, first.blur, first.solarize) == (224, (0.4, 1.0), 1.0, 0.0)
    assert (second.size, second.crop, second.blur, second.solarize) == (224, (0.4, 1.0), 0.1, 0.2)
    assert len(rest) == 8
    assert {(view.size, view.crop, view.blur, view.solarize) for view in rest} == {(96, (0.05, 0.4), 0.5, 0.0)}
    assert all(
        vars(v.jitter) == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8} for v in rest
    )
    assert all((view.gray, view.flip) == (0.2, 0.5) for view in (first, second, *rest))


def test_a_local_size_that_patches_do_not_divide_raises_with_advice():
    assert [METHODS["dino"].method.views(DINOConfig(), size)[-1].size for size in (16, 32, 40, 224)] == [8, 16, 16, 96]
    with pytest.raises(ValueError, match="local_size 20 is not a multiple of the backbone's patch_size 8; try 16"):
        dino(local_size=20)
