"""Against an independent derivation in float64, block masks included."""

import copy
import math

import numpy as np
import pytest
import torch

from components.methods import METHODS
from components.methods.blocks import DRAWS_PER_MASK, TRIES, block_masks
from components.methods.ibot import IBOT, IBOTConfig
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.training.optim import AdamW, Cosine
from tests.methods.naive import assert_directional_gradients, cross_entropy, dino_head, softmax
from tests.tolerances import FLOAT32, FLOAT64

TINY = ViTBackbone(image_size=24, patch_size=8, width=8, depth=1, heads=2)


def ibot(**settings):
    torch.manual_seed(0)
    config = IBOTConfig(**{"hidden": 6, "bottleneck": 4, "prototypes": 5, "local_crops": 1, **settings})
    method = IBOT(build(TINY), config).double().train()
    for p in method.student[1].mlp.parameters():
        p.data += 0.3 * torch.randn_like(p)  # initially all outputs are nearly equal
    method.mask_token.data.normal_()
    method.teacher.module.load_state_dict(method.student.state_dict())
    return method


def batch_of(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.rand(count, 3, side, side, generator=generator).double() * 255 for side in (24, 24, 8)]
    return [*views, *(torch.rand(count, DRAWS_PER_MASK, generator=generator) for _ in range(2))]


def naive_blocks(draws, side, probability, ratio):
    """One picture's mask, a list of lists, patch by patch."""
    masked = [[False] * side for _ in range(side)]
    if draws[0] >= probability:
        return masked
    left = (ratio[0] + (ratio[1] - ratio[0]) * draws[1]) * side**2
    smallest = (side // 3) ** 2
    for attempt in range(TRIES):
        area, aspect, down, right = draws[2 + 4 * attempt : 6 + 4 * attempt]
        expected = max(0, smallest + (left - smallest) * area)
        shape = math.exp(math.log(0.3) + aspect * (math.log(1 / 0.3) - math.log(0.3)))
        height, width = round(math.sqrt(expected * shape)), round(math.sqrt(expected / shape))
        if not (height < side and width < side):
            continue
        top, start = int(down * (side - height + 1)), int(right * (side - width + 1))
        new = [(r, c) for r in range(top, top + height) for c in range(start, start + width) if not masked[r][c]]
        if 0 < len(new) <= left:
            for r, c in new:
                masked[r][c] = True
            left -= len(new)
    return masked


def naive_masks(batch, config):
    draws = [row.tolist() for part in batch[-2:] for row in part.double()]
    ratio = config.mask_ratio
    return np.array([naive_blocks(row, 3, config.mask_probability, ratio) for row in draws]).reshape(len(draws), -1)


def teacher_targets(method, batch, teacher, centers, t):
    """Of both global crops, which the teacher sees whole: targets of class token and patches, means of the logits."""
    x = teacher[0].sequence(torch.cat(batch[:2]))
    logits = dino_head(teacher[1], x.flatten(0, 1)).reshape(*x.shape[:2], -1)
    classes = [softmax((row - centers[0]) / t) for row in logits[:, 0]]
    patches = [[softmax((row - centers[1]) / t) for row in photo] for photo in logits[:, 1:]]
    return classes, patches, (logits[:, 0].mean(0), logits[:, 1:].mean((0, 1)))


def naive_loss(method, batch, targets, masks, weight=1.0):
    """Equation 2 on the hidden patches, equation 3 of DINO on class tokens, added."""
    backbone, head = method.student
    b = len(batch[0])
    embedded = backbone.embed(torch.cat(batch[:2])).clone()
    whole = backbone.embed(torch.cat(batch[:2]), torch.ones(2 * b, 9, dtype=torch.bool), method.mask_token)
    for n, mask in enumerate(masks):
        for j in np.flatnonzero(mask):
            embedded[n, 1 + j] = whole[n, 1 + j]
    seen = backbone.encode(embedded)
    local = backbone.sequence(batch[2])[:, 0]
    logits = dino_head(head, torch.cat([seen[:, 0], local])).reshape(3, b, -1)
    patch_logits = dino_head(head, seen[:, 1:].flatten(0, 1)).reshape(2 * b, 9, -1)
    classes, patches = targets
    pairs = [(i, v) for i in range(2) for v in range(3) if i != v]
    first = np.mean([cross_entropy(classes[i * b + n], logits[v][n] / 0.1) for i, v in pairs for n in range(b)])
    second = 0.0
    for n, mask in enumerate(masks):
        losses = [cross_entropy(patches[n][j], patch_logits[n, j] / 0.1) for j in np.flatnonzero(mask)]
        second += sum(losses) / max(1, len(losses)) / len(masks)
    return first + weight * second


def test_several_steps_equal_a_naive_derivation():
    method = ibot(momentum=0.8, center_momentum=0.7, freeze_last=0.0, temperature_warmup=0.1, patch_weight=0.5)
    teacher, centers = copy.deepcopy(method.student), [np.zeros(5), np.zeros(5)]
    for number, progress in enumerate((0.0, 0.05, 0.4)):
        batch, t = batch_of(number), 0.04 + 0.03 * min(1, progress / 0.1)
        masks = naive_masks(batch, method.config)
        with torch.no_grad():
            *targets, means = teacher_targets(method, batch, teacher, centers, t)
            expected = naive_loss(method, batch, targets, masks, 0.5)
        method.before_step(progress)
        loss = method(batch)["loss"]
        method.zero_grad()
        loss.backward()
        method.after_backward()
        torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.3).step()
        method.after_step()
        # each patch's weight, one over the number of hidden patches, is float32
        assert loss.item() == pytest.approx(expected, abs=FLOAT32)
        centers = [0.7 * old + 0.3 * new for old, new in zip(centers, means, strict=True)]
        assert np.allclose(method.targets.center.mean.numpy(), centers[0], atol=FLOAT64)
        assert np.allclose(method.patch_targets.center.mean.numpy(), centers[1], atol=FLOAT64)
        m = 1 - 0.2 * (math.cos(math.pi * progress) + 1) / 2
        for average, weight in zip(teacher.parameters(), method.student.parameters(), strict=True):
            average.data.mul_(m).add_(weight.data, alpha=1 - m)
        for average, actual in zip(teacher.parameters(), method.teacher.parameters(), strict=True):
            assert torch.allclose(average, actual, atol=FLOAT64)


def test_gradients_are_the_finite_differences_of_the_naive_loss():
    method, batch = ibot(), batch_of(0)
    masks = naive_masks(batch, method.config)
    assert masks.any()
    with torch.no_grad():
        *targets, _ = teacher_targets(method, batch, method.teacher.module, (0, 0), 0.04)

    @torch.no_grad()
    def naive():
        return naive_loss(method, batch, targets, masks)

    assert_directional_gradients(method, method(batch)["loss"], naive)


@pytest.mark.parametrize("side", [2, 5, 14])
def test_block_masks_equal_the_loop_and_keep_to_their_ratio(side):
    draws = torch.rand(300, DRAWS_PER_MASK, generator=torch.Generator().manual_seed(side)).double()
    masks = block_masks(draws, side, 0.5, (0.1, 0.5))
    expected = [naive_blocks(row.tolist(), side, 0.5, (0.1, 0.5)) for row in draws]
    assert np.array_equal(masks.numpy(), np.array(expected).reshape(300, -1))
    assert (masks.sum(1) <= (0.1 + 0.4 * draws[:, 1]) * side**2).all()
    assert not masks[draws[:, 0] >= 0.5].any()
    if side == 14:
        ratios = masks[draws[:, 0] < 0.5].double().mean(1)
        assert (ratios - (0.1 + 0.4 * draws[:, 1][draws[:, 0] < 0.5])).abs().max() < 0.05


def test_a_batch_without_masks_has_dinos_loss_alone():
    method = ibot(mask_probability=0.0)
    losses = method(batch_of(0))
    assert losses["patch_loss"].item() == 0
    losses["loss"].backward()
    assert method.mask_token.grad is not None


def test_teacher_and_centers_are_updated_once_a_step_for_any_number_of_micro_batches():
    """lightly-train: once a micro-batch."""
    whole, parts, batch = ibot(), ibot(), batch_of(3, 4)
    loss = whole(batch)["loss"]
    whole.after_step()
    before = copy.deepcopy(parts.state_dict())
    halves = [list(part) for part in zip(*(value.chunk(2) for value in batch), strict=True)]
    assert sum(float(parts(half)["loss"].detach()) for half in halves) / 2 == pytest.approx(loss.item(), abs=FLOAT64)
    assert all(torch.equal(value, before[name]) for name, value in parts.state_dict().items())
    parts.after_step()
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, parts.state_dict()[name], atol=FLOAT64), name


def test_defaults_are_the_readmes_not_the_scripts():
    config = IBOTConfig()
    assert (config.prototypes, config.hidden, config.bottleneck, config.local_crops) == (8192, 2048, 256, 10)
    assert (config.global_crop, config.local_crop) == ((0.25, 1.0), (0.05, 0.25))
    assert (config.mask_probability, config.mask_ratio, config.patch_weight) == (0.5, (0.1, 0.5), 1.0)
    assert (config.teacher_temperature, config.temperature_warmup) == ((0.04, 0.07), pytest.approx(30 / 800))
    assert (config.momentum, config.center_momentum, config.targets) == (0.996, 0.9, "centering")
    assert config.optimizer == AdamW(
        lr=5e-4,
        weight_decay=0.04,
        final_weight_decay=0.4,
        clip=3.0,
        clip_each=True,
        schedule=Cosine(warmup=10 / 800, end=5e-4),
    )


def test_a_resnet_raises():
    with pytest.raises(ValueError, match=r"ibot needs patches, and resnet18 has none; try backbone.kind: vit"):
        METHODS["ibot"].method(build(ResNetBackbone(kind="resnet18", image_size=16)), IBOTConfig())
