"""Every step equals torchvision's own, given the same parameters; parameters have torchvision's distributions."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from components.data.augment import (
    NEEDED,
    ORDERS,
    Draws,
    Jitter,
    Labels,
    View,
    affine,
    color,
    crop_boxes,
    finish,
    gaussian_blur,
    look,
    more,
    turn_hue,
    uniform,
)
from components.data.scenes import draw

ROWS = np.arange(8)


def pictures(count=6, size=24):
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255).round()


def test_draws_depend_on_seed_epoch_row_and_view_alone():
    whole = uniform(3, 5, ROWS, 1, 4)
    assert torch.equal(whole[2:5], uniform(3, 5, ROWS[2:5], 1, 4))
    assert torch.equal(whole.flip(0), uniform(3, 5, ROWS[::-1].copy(), 1, 4))
    others = [
        uniform(4, 5, ROWS, 1, 4),
        uniform(3, 6, ROWS, 1, 4),
        uniform(3, 5, ROWS + 8, 1, 4),
        uniform(3, 5, ROWS, 2, 4),
    ]
    assert all(not torch.isclose(whole, other).any() for other in others)


def test_draws_are_uniform_and_independent():
    draws = uniform(0, 0, np.arange(20_000), 0, 8)
    assert 0 <= draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    assert torch.allclose(draws.mean(0), torch.full((8,), 0.5, dtype=draws.dtype), atol=0.01)
    assert torch.allclose(draws.var(0), torch.full((8,), 1 / 12, dtype=draws.dtype), atol=0.003)
    assert (torch.corrcoef(draws.T) - torch.eye(8)).abs().max() < 0.03
    steps = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert abs(steps) < 0.03


def test_two_draws_give_as_many_more_as_asked_by_splitmix64():
    draws = torch.tensor([[0.0, 0.0], [0.25, 0.5], [1 - 2**-24, 1 - 2**-24]])
    for row, (high, low) in zip(more(draws, 3), draws.tolist(), strict=True):
        state = (int(high * 2**24) << 24) + int(low * 2**24)
        for value in row.tolist():  # the generator of Steele, Lea & Flood, word by word
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            assert value == ((z ^ z >> 31) >> 40) / 2**24
    many = more(uniform(0, 0, np.arange(20_000), 0, 2).float(), 6)
    assert 0 <= many.min() < 1e-3
    assert 1 - 1e-3 < many.max() < 1
    assert torch.allclose(many.mean(0), torch.full((6,), 0.5), atol=0.01)
    assert (torch.corrcoef(many.T) - torch.eye(6)).abs().max() < 0.03


def test_crops_have_torchvisions_distribution():
    view, count = View(16, crop=(0.2, 1.0)), 4000
    shape = torch.tensor([[48, 64]]).repeat(count, 1)
    ours = crop_boxes(shape, view, uniform(0, 0, np.arange(count), 0, 22)).double()
    torch.manual_seed(0)
    image, crop = torch.zeros(3, 48, 64), v2.RandomResizedCrop(16, scale=(0.2, 1.0))
    sampled = [crop.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in sampled]).double()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 48).all()
    assert (ours[:, 1] + ours[:, 3] <= 64).all()
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert ks_distance(a, b) < 0.045  # 1.95 · sqrt(2 / 4000): one in a thousand


def ks_distance(a, b):
    places = torch.cat([a, b]).unique()
    return max(abs(float((a <= x).double().mean() - (b <= x).double().mean())) for x in places)


def test_a_crop_that_never_fits_is_the_largest_in_the_middle():
    box = crop_boxes(torch.tensor([[10, 100]]), View(8, crop=(1.0, 1.0)), torch.full((1, 22), 0.5, dtype=torch.float64))
    assert box.tolist() == [[0, 44, 10, 13]]  # as torchvision: height 10, width round(10 · 4/3), centered


@pytest.mark.parametrize("shift", [-0.5, -0.13, 0.0, 0.1, 0.4])
def test_hue_is_torchvisions(shift):
    x = pictures()
    wanted = tv.adjust_hue(x / 255, shift) * 255
    assert (turn_hue(x, torch.full((len(x),), shift)) - wanted).abs().max() < 0.02


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions(sigma):
    x = pictures()
    wanted = tv.gaussian_blur(x, [5, 5], [sigma, sigma])
    assert (gaussian_blur(x, torch.full((len(x),), sigma), 5) - wanted).abs().max() < 1e-3


def test_each_picture_is_blurred_by_its_own_sigma():
    x, sigma = pictures(2), torch.tensor([0.3, 1.7])
    both = gaussian_blur(x, sigma, 5)
    assert torch.allclose(both[1:], gaussian_blur(x[1:], sigma[1:], 5))


def test_brightness_contrast_saturation_and_gray_are_torchvisions():
    x = pictures() * 0.5 + 60  # far from 0 and 255: torchvision clamps after each step, we at the end
    one, yes = torch.ones(len(x)), torch.ones(len(x), dtype=torch.bool)
    kinds = [torch.full((len(x),), kind) for kind in range(3)]
    steps = [(kinds[1], 1.3 * one, yes), (kinds[0], 0.8 * one, yes), (kinds[2], 0.4 * one, yes)]
    wanted = tv.adjust_saturation(tv.adjust_brightness(tv.adjust_contrast(x / 255, 1.3), 0.8), 0.4) * 255
    assert (affine(x, steps) - wanted).abs().max() < 0.1
    gray = affine(x, [(kinds[2], 0 * one, yes)])
    assert (gray - tv.rgb_to_grayscale(x, 3)).abs().max() < 0.05


def reference(x, jitter, order, strengths, *, gray, gray_first):
    """One picture through torchvision's own functions, in `order`."""
    ops = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    x = x / 255
    if gray and gray_first:
        x = tv.rgb_to_grayscale(x, 3)
    for kind in order.tolist():
        x = ops[kind](x, strengths[kind])
    if gray and not gray_first:
        x = tv.rgb_to_grayscale(x, 3)
    return x * 255


@pytest.mark.parametrize("gray_first", [False, True])
def test_whole_color_chain_is_torchvisions_in_any_order(gray_first):
    """Mean difference under 1/255 with the papers' strengths; only the clamping between steps differs."""
    jitter = Jitter(0.4, 0.4, 0.4, 0.1, p=1.0)
    x = torch.stack([torch.from_numpy(draw(0, index).pixels).permute(2, 0, 1) for index in range(24)]).float()
    draws = uniform(0, 0, np.arange(24), 0, 7).float()
    draws[:, 5] = torch.arange(24) / 24 + 0.01  # every order once
    view = View(24, jitter=jitter, gray=0.5, gray_first=gray_first)
    ours, differences = color(x.clone(), view, draws), []
    for i in range(24):
        strengths = [0.6 + 0.8 * float(d) for d in draws[i, 1:4]] + [(2 * float(draws[i, 4]) - 1) * 0.1]
        wanted = reference(x[i], jitter, ORDERS[i], strengths, gray=bool(draws[i, 6] < 0.5), gray_first=gray_first)
        differences.append((ours[i] - wanted).abs().mean())
    assert torch.stack(differences).mean() < 1


def test_probabilities_are_kept():
    count = 3000
    view = View(8, jitter=Jitter(0.8, 0, 0, 0, p=0.8), gray=0.2, blur=0.5, solarize=0.3)
    draws = uniform(0, 0, np.arange(count), 0, 10).float()
    x = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    x[:, 0], x[:, 1], x[:, 2, ::2] = 50, 60, 70
    out = finish(x, view, draws)
    gray = (out[:, 0] == out[:, 1]).all((1, 2)) & (out[:, 1] == out[:, 2]).all((1, 2))
    assert abs(gray.float().mean() - 0.2) < 0.03
    untouched = (out[:, 0] == 50).all((1, 2))
    assert abs(untouched.float().mean() - 0.2 * 0.8) < 0.03  # neither jittered nor gray; blur leaves a flat channel


def test_solarize_turns_the_bright_half_around():
    x = torch.tensor([10, 127, 128, 250], dtype=torch.uint8).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
    out = finish(x, View(2, solarize=1.0), torch.zeros(1, 10))
    assert out[0, 0].flatten().tolist() == [10, 127, 127, 5]


def test_a_whole_look_is_uint8_of_the_right_size_and_does_not_depend_on_the_batch(photos):
    views = (View(24, blur=0.5, gray=0.2, jitter=Jitter(0.4, 0.4, 0.4, 0.1)), View(16))
    rows = photos.rows("train")[:8]
    first, second = look(photos, rows, views, seed=1, epoch=2)
    assert (first.shape, second.shape, first.dtype) == ((8, 3, 24, 24), (8, 3, 16, 16), torch.uint8)
    again = look(photos, rows[[5, 3]], views, seed=1, epoch=2)[0]
    assert torch.equal(again, first[[5, 3]])
    assert not torch.equal(look(photos, rows, views, seed=1, epoch=3)[0], first)


def test_without_crop_and_color_a_view_is_the_resized_picture(photos):
    rows = photos.rows("train")[:4]
    view = View(24, crop=(1.0, 1.0), ratio=(0.5, 2.0), flip=0.0)
    draws = torch.zeros(4, NEEDED, dtype=torch.float64)
    shapes = torch.from_numpy(photos.shapes[rows])
    draws[:, 10] = torch.log(shapes[0, 1] / shapes[0, 0] / 0.5) / np.log(4)  # the first try: the picture's own ratio
    from components.data.augment import render

    out = render(photos, rows[:1], view, draws[:1])
    assert torch.equal(out[0], photos.squares(rows[:1], 24)[0])


def test_draws_are_a_pictures_own_and_never_one(photos):
    rows = photos.rows("train")
    views = (View(16), Draws(5), Draws(5))
    _, a, b = look(photos, rows, views, 3, 1)
    assert a.shape == (len(rows), 5)
    assert a.dtype == torch.float32
    assert 0 <= a.min() <= a.max() < 1
    assert not torch.equal(a, b)  # two entries are two draws
    _, part, _ = look(photos, rows[2:5], views, 3, 1)
    assert torch.equal(part, a[2:5])  # whoever else is in the batch
    assert not torch.equal(look(photos, rows, views, 3, 2)[1], a)


def test_labels_are_those_of_the_pictures(photos):
    rows = photos.rows("train")[[4, 1, 7]]
    pixels, labels = look(photos, rows, (View(16), Labels()), 0, 0)
    assert labels.dtype == torch.int64
    assert [photos.classes[i] for i in labels.tolist()] == [photos.label(row) for row in rows.tolist()]
    assert len(pixels) == 3
