"""Steps on the meta device, whose tensors have only shapes, so that every operator can be checked.

On a GPU the host must never wait for what it computes. So a number or a shape that depends on what was computed is
refused, which meta tensors do themselves, and so is a copy to or from the device, or tensors of both in one operator.
"""

import contextlib

import pytest
import torch
from small import BATCH, SHAPES, make, settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from components.config import parse
from components.data import batched
from components.data.augment import DRAWS_PER_VIEW, View, sample_params
from components.data.distortions import DISTORTION_DRAWS, PROBABILITY, distort
from components.methods import METHODS, TRAINED, losses
from components.training import optim

DEVICE = torch.device("meta")
WAITS = (NotImplementedError, RuntimeError, AssertionError)


class Watched(TorchDispatchMode):
    """Refuses operators that mix host and device tensors. Scalars are allowed: a kernel launch passes them by value."""

    def __init__(self, allowed=0):
        super().__init__()
        self.allowed = allowed  # calls of nonzero, whose result length waits for the GPU; here it returns all positions

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.nonzero.default and self.allowed:
            self.allowed -= 1
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.long, device=DEVICE)
        out = func(*args, **(kwargs or {}))
        met = {x.device for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor) and x.ndim}
        assert len(met) < 2 or (kwargs or {}).get("non_blocking"), f"{func} between host and device"
        return out


def test_operators_that_wait_are_detected():
    x = torch.ones(3, device=DEVICE)
    y = torch.ones(3)
    with Watched():
        x + 2 * torch.ones(())
        for wait in (
            x.sum().item,
            lambda: x[x > 0],
            lambda: bool(x[0]),
            x.cpu,
            lambda: y.to(DEVICE),
            lambda: x[torch.tensor([0])],
            lambda: x + y,
        ):
            with pytest.raises(WAITS):
                wait()


def empty_batch(name):
    """Yields the fields of a batch of the method on the device, without content."""
    recipe = METHODS[name]
    for view in recipe.method.views(parse(recipe.config, settings(name), name), SHAPES["vit"].image_size):
        yield view.empty(BATCH, DEVICE)


ONCE = {"ibot", "dinov2"}  # the number of masked patches is random


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_never_waits(name, shape, monkeypatch):
    try:
        method = make(name, shape)
    except ValueError as refused:
        pytest.skip(str(refused))
    monkeypatch.setattr(losses.torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not support meta
    method.to(DEVICE)
    settings = method.config.optimizer
    optimizer = optim.build(method, settings, 256)
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=True)  # fused optimizers do not support meta
    batch = list(empty_batch(name))
    for progress in (0.0, 0.9) if shape == "vit" else (0.9,):
        with Watched(allowed=name in ONCE):
            method.before_step(progress)
            optim.set_rates(optimizer, settings, progress)
            method(batch)["loss"].backward()
            method.after_backward()
            optim.clip(optimizer, settings)
            optimizer.step()
            optimizer.zero_grad()
            method.after_step()


@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_making_views_never_waits(blur):
    view = View(16, blur=blur, solarize=0.2, gray=0.2)
    params = sample_params(view, torch.full((BATCH, 2), 32), torch.rand(BATCH, DRAWS_PER_VIEW, dtype=torch.float64))
    images = torch.empty(BATCH, 3, 32, 32, dtype=torch.uint8, device=DEVICE)
    with Watched():
        views = batched.render(images, params)
    assert views.shape == (BATCH, 3, 16, 16)


@pytest.mark.parametrize("name", PROBABILITY)
def test_distorting_views_never_waits(name):
    images = torch.empty(BATCH, 3, 16, 16, dtype=torch.uint8, device=DEVICE)
    with Watched():
        distorted = distort(images, (name,), torch.rand(BATCH, DISTORTION_DRAWS, dtype=torch.float64))
    assert (distorted.shape, distorted.dtype) == (images.shape, torch.uint8)
