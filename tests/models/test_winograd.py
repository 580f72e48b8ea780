"""Winograd's filtering is compared with torch's convolution in float64."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from components.models import winograd
from components.models.backbone import ResNetBackbone, build

EXACT = 1e-5  # float32 rounds by 6e-8; the transforms amplify that about tenfold, and sums of up to 960 terms add to it


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 8, 8), (1, 4, 2, 7, 5), (3, 2, 2, 4, 4), (2, 5, 3, 1, 1), (5, 8, 4, 9, 12)]
)
def test_the_convolution_and_its_gradients_equal_torchs_in_float64(shape, layout):
    count, channels, kernels, *sides = shape
    torch.manual_seed(0)
    x = torch.randn(count, channels, *sides).to(memory_format=layout).requires_grad_()
    weight = torch.randn(kernels, channels, 3, 3, requires_grad=True)
    actual, expected = winograd.convolve(x, weight), conv2d(x.double(), weight.double(), padding=1)
    assert actual.shape == expected.shape
    assert relative_error(actual.detach(), expected.detach()) < EXACT
    upstream = torch.randn(expected.shape)
    gradients = (torch.autograd.grad(y, (x, weight), upstream.to(y.dtype)) for y in (actual, expected))
    for gradient, reference in zip(*gradients, strict=True):
        assert gradient.shape == reference.shape
        assert relative_error(gradient, reference) < EXACT


def test_a_large_batch_is_computed_in_chunks(monkeypatch):
    x, weight = torch.randn(7, 4, 8, 8, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)
    whole = winograd.convolve(x, weight)
    gradients = torch.autograd.grad(whole.square().sum(), (x, weight))
    monkeypatch.setattr(winograd, "CHUNK_BYTES", 3 * 36 * 4 * 7 * 4)  # tiles, channels, bytes
    assert [chunk.start for chunk in winograd._chunks(x, weight)] == [0, 3, 6]
    in_chunks = winograd.convolve(x, weight)
    assert relative_error(in_chunks.detach(), whole.detach()) < EXACT
    chunked = torch.autograd.grad(in_chunks.square().sum(), (x, weight))
    for actual, expected in zip(chunked, gradients, strict=True):
        assert relative_error(actual, expected) < EXACT


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch):
    x, weight = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)
    shapes, from_tiles = [], winograd._from_tiles
    monkeypatch.setattr(winograd, "_from_tiles", lambda *args: shapes.append(args[1].shape) or from_tiles(*args))
    for image, kernel in ((x, weight.detach()), (x.detach(), weight), (x, weight)):
        winograd.convolve(image, kernel).sum().backward()
    out, to_x, to_weight = (4, 6), (6, 6), (3, 6)
    assert shapes == [out, to_x, out, to_weight, out, to_x, to_weight]
    assert not winograd.convolve(x.detach(), weight.detach()).requires_grad


def test_the_output_may_be_changed_in_place():
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(3, 4, 3, 3, requires_grad=True)
    actual = winograd.convolve(x, weight).relu_()
    assert actual.is_contiguous(memory_format=torch.channels_last)
    actual.sum().backward()
    expected = torch.autograd.grad(conv2d(x, weight, padding=1).relu_().sum(), weight)[0]
    assert relative_error(weight.grad, expected) < EXACT


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match=r"images of shape \[0, 4, 8, 8\] have no pixels"):
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


def test_the_loops_give_the_same_with_one_and_two_threads():
    x, weight = torch.randn(5, 6, 9, 8), torch.randn(4, 6, 3, 3)
    before = torch.get_num_threads()
    actual = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            if winograd._threads(5) != threads:
                pytest.skip("one core")
            tiles = winograd._to_tiles(winograd._channels_last(x), winograd.INPUT, 1)
            kernels = winograd._to_tiles(winograd._channels_last(weight), winograd.KERNEL)
            out = torch.zeros(5, 9, 8, 6)
            winograd._from_tiles(tiles, winograd.OUTPUT, out)
            actual.append([tiles, kernels, out])
    finally:
        torch.set_num_threads(before)
    assert all(relative_error(one, other) < EXACT for one, other in zip(*actual, strict=True))


@pytest.mark.parametrize(("speedup", "expected"), [(0.95, False), (1.05, False), (1.6, True)])
def test_a_measurement_decides_unless_the_environment_does(speedup, expected, monkeypatch):
    monkeypatch.setattr(winograd, "measured", lambda name, measure: speedup)
    for value, decision in (("auto", expected), ("on", True), ("off", False)):
        monkeypatch.setenv(winograd.WINOGRAD, value)
        assert winograd.enabled() is decision
        assert winograd.applies(layer(), torch.zeros(64, 128, 8, 8)) is decision
    monkeypatch.setenv(winograd.WINOGRAD, "yes")
    with pytest.raises(ValueError, match="SELFSIGHT_WINOGRAD is 'yes'; allowed: auto, on, off"):
        winograd.enabled()


def test_the_measurement_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    assert winograd.speedup() > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_nan_stays_in_the_tiles_that_contain_it():
    x = torch.ones(1, 2, 8, 8)
    x[0, 1, 2, 2] = torch.nan
    actual = winograd.convolve(x, torch.ones(3, 2, 3, 3))
    assert actual[:, :, 1:4, 1:4].isnan().all()
    assert actual[:, :, :, 5:].isfinite().all()  # in other tiles


@pytest.fixture
def always_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(winograd.WINOGRAD, "on")


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
@pytest.mark.usefixtures("always_on")
def test_other_layers_are_left_to_torch(other):
    x = torch.zeros(64, 128, 8, 8)
    assert winograd.applies(layer(), x)
    unsuitable = layer(**other)
    x = torch.zeros(64, unsuitable.in_channels, 8, 8, dtype=unsuitable.weight.dtype)
    assert not winograd.applies(unsuitable, x)


@pytest.mark.usefixtures("always_on")
def test_few_images_half_precision_and_other_devices_are_left_to_torch():
    assert not winograd.applies(layer(), torch.zeros(0, 128, 8, 8))
    wide = layer(in_channels=512, out_channels=512)
    assert not winograd.applies(wide, torch.zeros(31, 512, 4, 4))
    assert winograd.applies(wide, torch.zeros(32, 512, 4, 4))
    narrow = layer(in_channels=64, out_channels=64)
    assert not winograd.applies(narrow, torch.zeros(63, 64, 8, 8))
    assert winograd.applies(narrow, torch.zeros(64, 64, 8, 8))
    assert not winograd.applies(wide, torch.zeros(512, 64, 64))
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        assert not winograd.applies(wide, torch.zeros(32, 512, 4, 4))
    assert winograd.applies(layer(), torch.zeros(16, 128, 8, 8))
    assert not winograd.applies(layer(), torch.zeros(64, 128, 8, 8, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.applies(layer(), torch.zeros(64, 128, 8, 8))


@pytest.mark.usefixtures("always_on")
def test_a_resnet_with_winograd_is_about_as_exact_as_with_torchs_convolutions(monkeypatch):
    """Both are compared with float64. A ReLU amplifies rounding, so the limit is a multiple of the error of torch's."""
    torch.manual_seed(0)
    net, pixels, calls = build(ResNetBackbone(kind="resnet18", image_size=32)).train(), torch.rand(40, 3, 32, 32), []

    def computed(net: nn.Module, pixels: Tensor) -> list[Tensor]:
        net.zero_grad()
        actual = net(pixels)
        actual.square().mean().backward()
        return [actual.detach(), *(weight.grad for weight in net.parameters() if weight.dim() == 4)]

    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args: calls.append(args) or convolve(*args))
    actual = computed(copy.deepcopy(net), pixels)
    assert len(calls) == 13  # of the 17 of 3 x 3 one is the stem, and three have a stride
    monkeypatch.setattr(winograd, "applies", lambda *_: False)
    plain, expected = computed(copy.deepcopy(net), pixels), computed(net.double(), pixels.double())
    assert len(calls) == 13
    for tensor, torch_tensor, exact in zip(actual, plain, expected, strict=True):
        assert relative_error(tensor.detach(), exact) < 12 * relative_error(torch_tensor, exact)
