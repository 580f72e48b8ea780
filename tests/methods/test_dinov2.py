"""Against an independent derivation in float64: what DINOv2 adds to iBOT, and both tasks together."""

import copy
import math

import numpy as np
import pytest
import torch

from components.methods import METHODS
from components.methods.blocks import DRAWS_PER_MASK, block_masks
from components.methods.dinov2 import DINOv2, DINOv2Config, koleo
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.training.optim import AdamW, Cosine
from tests.methods.naive import assert_directional_gradients, cross_entropy, dino_head, naive_sinkhorn, softmax
from tests.tolerances import FLOAT64

# koleo adds 1e-8 to distances before it takes their logarithm; a patch's weight, 1 / their number, is float32
KOLEO = 1e-6
TINY = ViTBackbone(image_size=24, patch_size=8, width=8, depth=1, heads=2)


def dinov2(**settings):
    torch.manual_seed(0)
    small = {"hidden": 6, "bottleneck": 4, "patch_bottleneck": 3, "prototypes": 5, "local_crops": 1}
    method = DINOv2(build(TINY), DINOv2Config(**{**small, **settings})).double().train()
    for head in method.student[1:]:
        for p in head.mlp.parameters():
            p.data += 0.3 * torch.randn_like(p)
    method.mask_token.data.normal_()
    method.teacher.module.load_state_dict(method.student.state_dict())
    return method


def batch_of(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.rand(count, 3, side, side, generator=generator).double() * 255 for side in (24, 24, 8)]
    return [*views, *(torch.rand(count, DRAWS_PER_MASK, generator=generator) for _ in range(2))]


def naive_koleo(rows):
    rows = [row / np.sqrt((row**2).sum()) for row in np.asarray(rows)]
    total = 0.0
    for i, row in enumerate(rows):
        total -= math.log(min(np.sqrt(((row - other) ** 2).sum()) for j, other in enumerate(rows) if i != j))
    return total / len(rows)


def teacher_targets(method, batch, teacher, centers, t):
    """Targets of class tokens, and of the hidden patches alone; and the means of both kinds of logits."""
    masked = block_masks(torch.cat(batch[-2:]), 3, 0.5, (0.1, 0.5))
    x = teacher[0].sequence(torch.cat(batch[:2]))
    teacher_logits = dino_head(teacher[1], x[:, 0]), dino_head(teacher[-1], x[:, 1:][masked])
    if method.config.targets == "sinkhorn":
        targets = [naive_sinkhorn(logits, t) for logits in teacher_logits]
    else:
        targets = [
            [softmax((row - center) / t) for row in logits]
            for logits, center in zip(teacher_logits, centers, strict=True)
        ]
    return targets, masked, [logits.mean(0) for logits in teacher_logits]


def naive_loss(method, batch, targets, masked):
    backbone, head, patch_head = method.student[0], method.student[1], method.student[-1]
    b = len(batch[0])
    seen = backbone.encode(backbone.embed(torch.cat(batch[:2]), masked, method.mask_token))
    local = backbone.sequence(batch[2])[:, 0]
    logits = dino_head(head, torch.cat([seen[:, 0], local])).reshape(3, b, -1)
    pairs = [(i, v) for i in range(2) for v in range(3) if i != v]
    loss = np.mean([cross_entropy(targets[0][i * b + n], logits[v][n] / 0.1) for i, v in pairs for n in range(b)])
    patch_logits = dino_head(patch_head, seen[:, 1:][masked])
    of_picture = masked.nonzero()[:, 0].tolist()
    for j, n in enumerate(of_picture):
        loss += cross_entropy(targets[1][j], patch_logits[j] / 0.1) / of_picture.count(n) / (2 * b)
    return loss + 0.1 * (naive_koleo(seen[:b, 0]) + naive_koleo(seen[b:, 0]))


@pytest.mark.parametrize(("targets", "separate"), [("sinkhorn", True), ("centering", True), ("sinkhorn", False)])
def test_several_steps_equal_a_naive_derivation(targets, separate):
    method = dinov2(
        targets=targets,
        separate_heads=separate,
        momentum=0.8,
        center_momentum=0.7,
        freeze_last=0,
        temperature_warmup=0.1,
    )
    teacher, centers = copy.deepcopy(method.student), [np.zeros(5), np.zeros(5)]
    for number, progress in enumerate((0.0, 0.05, 0.4)):
        batch, t = batch_of(number), 0.04 + 0.03 * min(1, progress / 0.1)
        with torch.no_grad():
            wanted_targets, masked, means = teacher_targets(method, batch, teacher, centers, t)
            expected = naive_loss(method, batch, wanted_targets, masked)
        method.before_step(progress)
        loss = method(batch)["loss"]
        method.zero_grad()
        loss.backward()
        method.after_backward()
        torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.3).step()
        method.after_step()
        assert loss.item() == pytest.approx(expected, abs=KOLEO)
        centers = [0.7 * old + 0.3 * new for old, new in zip(centers, means, strict=True)]
        assert np.allclose(method.targets.center.mean.numpy(), centers[0], atol=FLOAT64)
        assert np.allclose(method.patch_targets.center.mean.numpy(), centers[1], atol=FLOAT64)
        m = 1 - 0.2 * (math.cos(math.pi * progress) + 1) / 2
        for average, weight in zip(teacher.parameters(), method.student.parameters(), strict=True):
            average.data.mul_(m).add_(weight.data, alpha=1 - m)
        for average, actual in zip(teacher.parameters(), method.teacher.parameters(), strict=True):
            assert torch.allclose(average, actual, atol=FLOAT64)


def test_gradients_are_the_finite_differences_of_the_naive_loss():
    method, batch = dinov2(), batch_of(0)
    with torch.no_grad():
        targets, masked, _ = teacher_targets(method, batch, method.teacher.module, None, 0.04)
    assert masked.any()

    @torch.no_grad()
    def naive():
        return naive_loss(method, batch, targets, masked)

    assert_directional_gradients(method, method(batch)["loss"], naive)


def test_koleo_searches_the_nearest_in_float32():
    """bf16 tells cosines near 1 apart in steps of 1/256."""
    x = 1 + 0.05 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = koleo(x)
    assert under_autocast == koleo(x)


def test_koleo_equals_the_loop_and_has_a_closed_form():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    assert koleo(x).item() == pytest.approx(naive_koleo(x.numpy()), abs=KOLEO)
    assert koleo(torch.eye(4).double()).item() == pytest.approx(-math.log(2) / 2, abs=KOLEO)
    assert koleo(torch.ones(2, 4).double()).isfinite()


def test_the_last_layers_of_both_heads_are_frozen_at_first():
    method = dinov2(freeze_last=0.25)
    for progress, rests in ((0.2, True), (0.25, False)):
        method.before_step(progress)
        method.zero_grad()
        method(batch_of(0))["loss"].backward()
        method.after_backward()
        assert [head.last.weight.grad is None for head in method.student[1:]] == [rests, rests]


def test_defaults_are_the_configs():
    config = DINOv2Config()
    assert (config.prototypes, config.bottleneck, config.patch_bottleneck) == (131072, 384, 256)
    assert (config.targets, config.separate_heads, config.koleo_weight) == ("sinkhorn", True, 0.1)
    assert (config.global_crop, config.local_crop, config.local_crops) == ((0.32, 1.0), (0.05, 0.32), 8)
    assert (config.mask_probability, config.mask_ratio, config.momentum) == (0.5, (0.1, 0.5), 0.994)
    assert (config.freeze_last, config.temperature_warmup) == (pytest.approx(1 / 500), pytest.approx(30 / 500))
    assert config.optimizer == AdamW(
        lr=1e-4,
        scaling="sqrt",
        weight_decay=0.04,
        final_weight_decay=0.2,
        clip=3.0,
        schedule=Cosine(warmup=80 / 500, end=5e-3),
    )


def test_a_resnet_and_a_batch_of_one_raise():
    recipe = METHODS["dinov2"]
    with pytest.raises(ValueError, match=r"dinov2 needs patches, and resnet18 has none; try backbone.kind: vit"):
        recipe.method(build(ResNetBackbone(kind="resnet18", image_size=16)), DINOv2Config())
    with pytest.raises(ValueError, match="batch_size 1 leaves no other photo"):
        recipe.method.check(DINOv2Config(), 100, 1, 1)
