"""How methods set up their parameters where the reference codes do it in a way that is easily missed."""

import pytest
from small import SHAPES, make
from torchvision.models import resnet18, resnet50

from components.models.backbone import ResNetBackbone, build
from components.models.resnet import zero_init_residual
from components.training.optim import build as build_optimizer


def scales_at_zero(module):
    return {name for name, p in module.named_parameters() if name.endswith(".weight") and not p.any()}


@pytest.mark.parametrize("name", ["mae", "ibot", "dinov2", "ijepa"])
def test_weight_decay_applies_to_the_mask_token(name):
    """The reference codes exempt vectors from weight decay; their mask tokens are [1, 1, D] or [1, D]."""
    method = make(name, "vit")
    optimizer = build_optimizer(method, method.config.optimizer, 256)
    (group,) = (g for g in optimizer.param_groups if any(p is method.mask_token for p in g["params"]))
    assert group["decayed"]
    assert group["weight_decay"] == method.config.optimizer.weight_decay > 0


@pytest.mark.parametrize("name", ["simclr", "byol", "simsiam", "mocov3", "barlowtwins", "vicreg"])
def test_residual_blocks_start_as_the_identity(name):
    backbone = make(name, "resnet").keep()
    assert scales_at_zero(backbone.trunk) == scales_at_zero(resnet18(zero_init_residual=True))


@pytest.mark.parametrize("name", ["moco", "dino", "swav", "supervised"])
def test_other_methods_keep_torchvisions_start(name):
    assert scales_at_zero(make(name, "resnet").keep().trunk) == set()


def test_bottlenecks_start_as_the_identity_and_a_vit_is_left_alone():
    backbone = build(ResNetBackbone(kind="resnet50", image_size=16))
    zero_init_residual(backbone)
    assert scales_at_zero(backbone.trunk) == scales_at_zero(resnet50(zero_init_residual=True))
    vit = build(SHAPES["vit"])
    before = {name: p.clone() for name, p in vit.named_parameters()}
    zero_init_residual(vit)
    assert all(p.equal(before[name]) for name, p in vit.named_parameters())
