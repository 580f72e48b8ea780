"""Winograd's filtering against the plain sum in float64."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from components.models import winograd
from components.models.backbone import ResNetBackbone, build


def far(found: Tensor, right: Tensor) -> float:
    return ((found - right).norm() / right.norm()).item()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 8, 8), (1, 4, 2, 7, 5), (3, 2, 2, 4, 4), (2, 5, 3, 1, 1), (5, 8, 4, 9, 12)]
)
def test_the_convolution_and_its_gradients_are_the_plain_ones(shape, layout):
    count, channels, kernels, *sides = shape
    torch.manual_seed(0)
    x = torch.randn(count, channels, *sides).to(memory_format=layout).requires_grad_()
    weight = torch.randn(kernels, channels, 3, 3, requires_grad=True)
    found, right = winograd.convolve(x, weight), conv2d(x.double(), weight.double(), padding=1)
    assert found.shape == right.shape
    assert far(found.detach(), right.detach()) < 1e-5
    upstream = torch.randn(right.shape)
    gradients = (torch.autograd.grad(y, (x, weight), upstream.to(y.dtype)) for y in (found, right))
    for mine, theirs in zip(*gradients, strict=True):
        assert mine.shape == theirs.shape
        assert far(mine, theirs) < 1e-5


def test_many_pictures_are_taken_in_parts(monkeypatch):
    x, weight = torch.randn(7, 4, 8, 8, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)
    whole = winograd.convolve(x, weight)
    gradients = torch.autograd.grad(whole.square().sum(), (x, weight))
    monkeypatch.setattr(winograd, "AT_ONCE", 3 * 36 * 4 * 7 * 4)  # tiles, channels, bytes
    assert [part.start for part in winograd._parts(x, weight)] == [0, 3, 6]
    parts = winograd.convolve(x, weight)
    assert far(parts.detach(), whole.detach()) < 1e-6
    for one, other in zip(torch.autograd.grad(parts.square().sum(), (x, weight)), gradients, strict=True):
        assert far(one, other) < 1e-6


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch):
    x, weight = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)
    ways, join = [], winograd._join
    monkeypatch.setattr(winograd, "_join", lambda *given: ways.append(given[1].shape) or join(*given))
    for one, other in ((x, weight.detach()), (x.detach(), weight), (x, weight)):
        winograd.convolve(one, other).sum().backward()
    out, to_x, to_weight = (4, 6), (6, 6), (3, 6)
    assert ways == [out, to_x, out, to_weight, out, to_x, to_weight]
    assert not winograd.convolve(x.detach(), weight.detach()).requires_grad


def test_what_comes_out_may_be_changed_in_place():
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(3, 4, 3, 3, requires_grad=True)
    found = winograd.convolve(x, weight).relu_()
    assert found.is_contiguous(memory_format=torch.channels_last)
    found.sum().backward()
    right = torch.autograd.grad(conv2d(x, weight, padding=1).relu_().sum(), weight)[0]
    assert far(weight.grad, right) < 1e-5


def test_no_pictures_are_an_error():
    with pytest.raises(ValueError, match=r"pictures of \[0, 4, 8, 8\] have no places"):
        winograd.convolve(torch.zeros(0, 4, 8, 8), torch.zeros(3, 4, 3, 3))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_torch_keeps_its_number_of_threads():
    """Of those that numba starts there is one for each core."""
    code = """
import torch
from components.models import winograd
winograd.convolve(torch.randn(4, 4, 8, 8), torch.randn(3, 4, 3, 3))
print(torch.get_num_threads(), winograd._threads(4), torch.get_num_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1"]


def test_threads_share_the_pictures_and_change_nothing():
    x, weight = torch.randn(5, 6, 9, 8), torch.randn(4, 6, 3, 3)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            if winograd._threads(5) != threads:
                pytest.skip("one core")
            cut = winograd._cut(winograd._last(x), winograd.INPUT, 1)
            kernels = winograd._cut(winograd._last(weight), winograd.KERNEL)
            out = torch.zeros(5, 9, 8, 6)
            winograd._join(cut, winograd.OUTPUT, out)
            found.append([cut, kernels, out])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_is_not_a_number_stays_one():
    x = torch.ones(1, 2, 8, 8)
    x[0, 1, 2, 2] = torch.nan
    found = winograd.convolve(x, torch.ones(3, 2, 3, 3))
    assert found[:, :, 1:4, 1:4].isnan().all()
    assert found[:, :, :, 5:].isfinite().all()  # another tile, out of its reach


def layer(**other: object) -> nn.Conv2d:
    return nn.Conv2d(
        **{"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1, "bias": False, **other}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"stride": 2},
        {"padding": 0},
        {"kernel_size": 1, "padding": 0},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"bias": True},
        {"padding_mode": "reflect"},
        {"in_channels": 32},
        {"out_channels": 32},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_other_layers_are_left_to_torch(other):
    x = torch.zeros(64, 128, 8, 8)
    assert winograd.suits(layer(), x)
    made = layer(**other)
    assert not winograd.suits(made, torch.zeros(64, made.in_channels, 8, 8, dtype=made.weight.dtype))


def test_few_pictures_half_precision_and_other_devices_are_left_to_torch(monkeypatch):
    assert not winograd.suits(layer(), torch.zeros(0, 128, 8, 8))
    wide = layer(in_channels=512, out_channels=512)
    assert not winograd.suits(wide, torch.zeros(31, 512, 4, 4))
    assert winograd.suits(wide, torch.zeros(32, 512, 4, 4))
    narrow = layer(in_channels=64, out_channels=64)
    assert not winograd.suits(narrow, torch.zeros(63, 64, 8, 8))
    assert winograd.suits(narrow, torch.zeros(64, 64, 8, 8))
    assert not winograd.suits(wide, torch.zeros(512, 64, 64))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not winograd.suits(wide, torch.zeros(32, 512, 4, 4))
    monkeypatch.undo()
    assert winograd.suits(layer(), torch.zeros(16, 128, 8, 8))
    assert not winograd.suits(layer(), torch.zeros(64, 128, 8, 8, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.suits(layer(), torch.zeros(64, 128, 8, 8))


def test_a_resnet_computes_what_it_computes_without(monkeypatch):
    """Rounding that a ReLU magnifies: against float64 it is a few times as far as torch's own convolutions are."""
    torch.manual_seed(0)
    net, pixels, calls = build(ResNetBackbone(kind="resnet18", image_size=32)).train(), torch.rand(40, 3, 32, 32), []

    def computed(net: nn.Module, pixels: Tensor) -> list[Tensor]:
        net.zero_grad()
        found = net(pixels)
        found.square().mean().backward()
        return [found.detach(), *(weight.grad for weight in net.parameters() if weight.dim() == 4)]

    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *given: calls.append(given) or convolve(*given))
    mine = computed(copy.deepcopy(net), pixels)
    assert len(calls) == 13  # of 17 of 3 x 3 one is the stem, and three have a stride
    monkeypatch.setattr(winograd, "suits", lambda *_: False)
    plain, right = computed(copy.deepcopy(net), pixels), computed(net.double(), pixels.double())
    assert len(calls) == 13
    for one, other, both in zip(mine, plain, right, strict=True):
        assert far(one.detach(), both) < 12 * far(other, both)
