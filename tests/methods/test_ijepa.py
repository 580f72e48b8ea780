"""Against the paper's steps written out for one picture and one block at a time, in float64."""

import copy

import pytest
import torch

from components.data.augment import View
from components.data.fields import Draws
from components.methods import METHODS
from components.methods.ijepa import IJEPA, IJEPAConfig, block_mask, block_sizes
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.models.heads import sincos
from components.training.optim import AdamW, Cosine
from tests.tolerances import FLOAT64

TINY = ViTBackbone(image_size=20, patch_size=4, width=8, depth=2, heads=2)
SIDE = 5
MANY = torch.rand(4000, 15, generator=torch.Generator().manual_seed(1))


def ijepa(shape=TINY, **settings):
    torch.manual_seed(0)
    return IJEPA(build(shape), IJEPAConfig(predictor_dim=12, predictor_depth=1, **settings)).double().train()


def data(seed, count=3):
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 20, 20, generator=random).double() * 255, torch.rand(count, 15, generator=random)]


def places_of(draws, sizes):
    """The patches of one block, from its three draws."""
    height, width = sizes[int(draws[0] * len(sizes))].tolist()
    top, left = int(draws[1] * (SIDE + 1 - height)), int(draws[2] * (SIDE + 1 - width))
    return {row * SIDE + column for row in range(top, top + height) for column in range(left, left + width)}


def naive_loss(method, teacher, pixels, draws):
    """Section 3: tokens that are not context are taken away, not masked; the predictor runs once for each block."""
    losses, vit, places = [], method.backbone, sincos(SIDE, 12)
    sizes, whole = block_sizes(SIDE, (0.15, 0.2), (0.75, 1.5)), block_sizes(SIDE, (0.85, 1.0), (1.0, 1.0))
    for photo, numbers in zip(pixels, draws.view(-1, 5, 3).tolist(), strict=True):
        targets = [sorted(places_of(three, sizes)) for three in numbers[1:]]
        context = sorted(places_of(numbers[0], whole) - {i for target in targets for i in target})
        with torch.no_grad():
            goal = teacher.sequence(photo[None])[0, 1:]
            centered = goal - goal.mean(1, keepdim=True)
            goal = centered / ((centered**2).mean(1, keepdim=True) + 1e-5).sqrt()
        x = vit.trunk.embeddings(vit.normalize(photo[None]))[:, [0] + [1 + i for i in context]]
        for layer in vit.trunk.layers:
            x = layer(x)
        x = vit.trunk.layernorm(x)[0, 1:]
        x = x @ method.to_predictor.weight.T + method.to_predictor.bias + places[context]
        for target in targets:
            y = torch.cat([x, method.mask_token[0] + places[target]])[None]
            for layer in method.predictor.layers:
                y = layer(y)
            predicted = method.from_predictor(method.predictor.norm(y))[0, len(context) :]
            away = (predicted - goal[target]).abs()
            losses.append(torch.where(away < 1, away**2 / 2, away - 0.5).mean())
    return sum(losses) / len(losses)


def test_several_steps_equal_a_naive_derivation():
    method = ijepa(momentum=0.9)
    twin = copy.deepcopy(method)
    teacher = copy.deepcopy(twin.backbone)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in (method, twin)]
    for step in range(3):
        method.before_step(step / 3)
        pixels, draws = data(step)
        actual, expected = method([pixels, draws])["loss"], naive_loss(twin, teacher, pixels, draws)
        assert actual.item() == pytest.approx(expected.item(), abs=FLOAT64)
        for loss, optimizer in zip((actual, expected), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
        for (name, p), q in zip(method.named_parameters(), twin.parameters(), strict=True):
            assert p.grad is q.grad is None or torch.allclose(p.grad, q.grad, atol=FLOAT64), name
        for optimizer in optimizers:
            optimizer.step()
        method.after_step()
        momentum = 0.9 + 0.1 * step / 3  # linear to 1
        for average, weight in zip(teacher.parameters(), twin.backbone.parameters(), strict=True):
            average.data.mul_(momentum).add_(weight.data, alpha=1 - momentum)
        for average, kept in zip(teacher.parameters(), method.keep().parameters(), strict=True):
            assert torch.allclose(average, kept, atol=FLOAT64)


@pytest.mark.parametrize("side", [4, 5, 6, 8, 14])
def test_blocks_have_the_papers_areas_and_aspect_ratios_and_leave_a_context(side):
    method = ijepa(ViTBackbone(image_size=side * 4, patch_size=4, width=8, depth=1, heads=2))
    context, targets = method.blocks(MANY)
    assert targets.shape == (4000, 4, side**2)
    assert not (context[:, None] & targets).any()
    assert context.any(1).float().mean() > 0.999
    areas = targets.float().sum(2)
    assert areas.max() <= method.max_target_patches
    if side >= 14:  # whole patches blur the range by half a patch a side
        assert areas.min() / side**2 > 0.15 - 1 / side
        assert areas.max() / side**2 < 0.2 + 1 / side
        assert areas.mean() / side**2 == pytest.approx(0.175, abs=0.005)  # of the middle of 0.15 … 0.2
    grid = targets.view(-1, side, side)
    heights, widths = grid.any(2).sum(1), grid.any(1).sum(1)
    assert torch.equal(heights * widths, grid.sum((1, 2)))  # rectangles
    assert (heights > widths).any()
    assert (heights < widths).any()


def test_blocks_reach_every_patch_of_the_grid():
    """The reference code draws a corner one short of the last, so that no block touches the lower and right borders."""
    _, targets = ijepa().blocks(MANY)
    share = targets.float().mean((0, 1)).view(5, 5)
    assert share.min() > 0.02
    # a share of 16,000 blocks has a standard deviation of 0.003
    assert torch.allclose(share, share.flip(0), atol=0.02)
    assert torch.allclose(share, share.flip(1), atol=0.02)


def test_scale_and_aspect_ratio_are_drawn_independently():
    """The reference code takes both from one number: its small blocks are all wide, its large ones all tall."""
    sizes = block_sizes(14, (0.15, 0.2), (0.75, 1.5)).float()
    both = torch.corrcoef(torch.stack([sizes.prod(1), sizes[:, 0] / sizes[:, 1]]))
    assert abs(both[0, 1]) < 0.3


def test_the_blocks_of_a_photo_do_not_depend_on_its_batch():
    """Otherwise micro-batches and ranks would have other blocks."""
    method = ijepa()
    whole, half = method.blocks(MANY[:8]), method.blocks(MANY[2:4])
    assert all(torch.equal(a[2:4], b) for a, b in zip(whole, half, strict=True))
    alone = [method([pixels[None] for pixels in pair])["loss"] for pair in zip(*data(0), strict=True)]
    assert method(data(0))["loss"].item() == pytest.approx(sum(alone).item() / 3, abs=FLOAT64)


def test_the_predictor_does_not_see_its_targets():
    method = ijepa()
    pixels, draws = data(0)
    context, targets = method.blocks(draws)
    places = targets.byte().argsort(dim=2, descending=True, stable=True)[:, :, : method.max_target_patches]
    valid = targets.gather(2, places)
    masked = ~context.view(-1, 1, 5, 5).repeat_interleave(4, 2).repeat_interleave(4, 3)
    predicted = [method.predict(x, context, places, valid) for x in (pixels, torch.where(masked, 3.0, pixels))]
    assert torch.allclose(*predicted, atol=FLOAT64)


def test_target_features_are_normalized_and_get_no_gradient():
    method = ijepa()
    goal = method.target_features(data(0)[0], torch.arange(25).expand(3, 1, -1))
    assert torch.allclose(goal.mean(-1), torch.zeros(3, 1, 25).double(), atol=FLOAT64)
    # 1e-5 is added to the variance before its root is taken
    assert torch.allclose(goal.var(-1, correction=0), torch.ones(3, 1, 25).double(), atol=1e-3)
    method(data(0))["loss"].backward()
    assert all(p.grad is None for p in method.target.parameters())


def test_the_slow_copy_is_the_backbone_and_pools_its_patches():
    method = ijepa()
    assert method.keep() is method.target.module
    assert method.keep().pool == "mean"


def test_a_grid_that_is_too_small_raises_with_advice():
    small = ViTBackbone(image_size=12, patch_size=4, width=8, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"3 x 3 patches is too small: .* single patch; .*try a smaller backbone"):
        ijepa(small)
    assert ijepa(small, target_scale=(0.3, 0.4)).max_target_patches == 4
    with pytest.raises(ValueError, match=r"ijepa needs patches, and resnet18 has none; try backbone.kind: vit"):
        IJEPA(build(ResNetBackbone(kind="resnet18", image_size=16)), IJEPAConfig())


def test_targets_that_leave_no_context_give_a_finite_loss():
    method = ijepa(ViTBackbone(image_size=16, patch_size=4, width=8, depth=1, heads=2))
    square = next(i for i, size in enumerate(method.sizes.tolist()) if size == [2, 2]) / len(method.sizes)
    corners = [[square, top, left] for top in (0, 0.99) for left in (0, 0.99)]
    draws = torch.tensor([[0, 0, 0], *corners]).view(1, 15)
    assert not method.blocks(draws)[0].any()
    loss = method([data(0)[0][:1, :, :16, :16], draws])["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


def test_a_block_lies_where_its_draws_put_it():
    sizes = torch.tensor([[2, 3]])
    predicted = block_mask(torch.tensor([[[0.0, 0.99, 0.5]]]), sizes, 5).view(5, 5)
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[3:5, 1:4] = True
    assert torch.equal(predicted, expected)


def test_defaults_are_the_papers():
    config = IJEPAConfig()
    assert (config.targets, config.target_scale, config.target_ratio) == (4, (0.15, 0.2), (0.75, 1.5))
    assert (config.context_scale, config.predictor_dim, config.predictor_depth) == ((0.85, 1.0), 384, 12)
    assert config.momentum == 0.996
    schedule = Cosine(warmup=40 / 300, end=1e-3)
    assert config.optimizer == AdamW(lr=1.25e-4, weight_decay=0.04, final_weight_decay=0.4, schedule=schedule)
    assert config.optimizer.lr * 2048 / 256 == pytest.approx(1e-3)
    view, draws = METHODS["ijepa"].method.views(config, 224)
    assert view == View(224, crop=(0.3, 1.0), flip=0.0)  # neither flip nor color
    assert draws == Draws(15)
