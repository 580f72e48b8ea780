"""Against quarter turns and a cross-entropy written out as loops."""

import numpy as np
import pytest
import torch

from components.methods import METHODS
from components.methods.rotation import Rotation, RotationConfig
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.training.optim import SGD, Steps, multiplier
from tests.tolerances import FINITE_DIFFERENCE, FLOAT64

VIT = ViTBackbone(image_size=8, patch_size=4, width=8, depth=1, heads=2)


def make_rotation(shape=VIT):
    torch.manual_seed(0)
    return Rotation(build(shape), RotationConfig()).double().train()


def photos(count=3):
    return torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def rotated(photo, turns):
    """Counterclockwise, pixel by pixel: what was at the right is at the top after one turn."""
    for _ in range(turns):
        side = photo.shape[-1]
        new = photo.clone()
        for y in range(side):
            for x in range(side):
                new[:, y, x] = photo[:, x, side - 1 - y]
        photo = new
    return photo


def naive_loss(method, batch):
    losses = []
    with torch.no_grad():
        for photo in batch:
            for turns in range(4):
                x = method.backbone(rotated(photo, turns)[None])[0].numpy()
                logits = method.head.weight.detach().numpy() @ x + method.head.bias.detach().numpy()
                losses.append(np.log(np.exp(logits).sum()) - logits[turns])
    return np.mean(losses)


def test_loss_equals_a_naive_derivation_over_several_steps():
    method = make_rotation()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    for _ in range(3):
        loss = method([photos()])["loss"]
        assert loss.item() == pytest.approx(naive_loss(method, photos()), abs=FLOAT64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_gradients_of_all_parameters_are_finite_differences_of_the_naive_loss():
    method = make_rotation()
    method([photos()])["loss"].backward()
    random = torch.Generator().manual_seed(1)
    for name, p in method.named_parameters():
        way, values = torch.randn(p.shape, generator=random, dtype=p.dtype), []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                p.add_(way, alpha=step)
                values.append(naive_loss(method, photos()))
            p.add_(way, alpha=1e-6)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx((p.grad * way).sum().item(), abs=FINITE_DIFFERENCE), name


def test_all_four_rotations_of_every_photo_are_in_the_batch():
    method, seen = make_rotation(), []
    method.backbone.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    method([photos(2)])
    assert len(seen[0]) == 8
    for turns in range(4):
        for i, photo in enumerate(photos(2)):
            assert torch.equal(seen[0][2 * turns + i], rotated(photo, turns))


def test_micro_batches_equal_one_batch():
    method = make_rotation()
    whole = method([photos(4)])["loss"].item()
    parts = [method([part])["loss"].item() for part in photos(4).chunk(2)]
    assert sum(parts) / 2 == pytest.approx(whole, abs=FLOAT64)
    assert not method.needs_full_batch
    assert "batch norm" in make_rotation(ResNetBackbone(kind="resnet18", image_size=8)).needs_full_batch


def test_defaults_are_the_published_runs():
    config = RotationConfig()
    assert config.optimizer == SGD(
        lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True, schedule=config.optimizer.schedule
    )
    assert isinstance(config.optimizer.schedule, Steps)
    rates = [multiplier(config.optimizer.schedule, epoch / 105) for epoch in (0, 29, 30, 60, 90, 100)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 1e-3, 1e-4])
    (view,) = METHODS["rotation"].method.views(config, 224)
    assert (view.size, view.crop, view.flip, view.jitter, view.gray) == (224, (0.08, 1.0), 0.5, None, 0.0)
