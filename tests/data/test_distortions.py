"""Each distortion against loops over single photos and pixels, and views with and without distortions."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from components.data import batched, distortions
from components.data.augment import DRAWS_PER_VIEW, Jitter, View, sample_params
from components.data.distortions import (
    DISTORTION_DRAWS,
    DRAWS_EACH,
    PROBABILITY,
    SIGMA,
    cutout,
    distort,
    noise,
    rotate,
    sobel,
)
from components.data.fields import BatchSource, make_batch
from components.data.randomness import hash_bits
from components.methods.simclr import SimCLR, SimCLRConfig

NAMES = tuple(PROBABILITY)
CPU = torch.device("cpu")
PLAIN = View(24, jitter=Jitter(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=0.5)


def images(count=6, size=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def draws(count=6, columns=2):
    return torch.rand(count, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_sobel_is_the_length_of_the_gradient_at_each_pixel():
    x = images(2, 7)
    actual, size = sobel(x, draws(2)), 7

    def inside(place):  # reflected without the border itself
        return abs(place) if place < size else 2 * (size - 1) - place

    kernel = [(-1, 1), (0, 2), (1, 1)]
    for b, c, i, j in np.ndindex(2, 3, size, size):
        photo = x[b, c].tolist()
        across = sum(w * (photo[inside(i + k)][inside(j + 1)] - photo[inside(i + k)][inside(j - 1)]) for k, w in kernel)
        down = sum(w * (photo[inside(i + 1)][inside(j + k)] - photo[inside(i - 1)][inside(j + k)]) for k, w in kernel)
        assert actual[b, c, i, j] == min(255, round(math.sqrt(across**2 + down**2) / 4))


def test_sobel_shows_a_step_as_bright_as_it_is_and_clamps():
    step = torch.zeros(1, 3, 6, 6, dtype=torch.uint8)
    step[..., 3:] = 200
    assert sobel(step, draws(1))[0, 0, 2].tolist() == [0, 0, 200, 200, 0, 0]
    corner = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    corner[..., 2:, 2:] = 255
    assert sobel(corner, draws(1)).max() == 255  # 3 · √2 / 4 · 255 = 270


@pytest.mark.parametrize("size", [12, 14])
def test_cutout_fills_a_square_that_may_lie_outside_in_part(size):
    x, where = images(6, size), draws()
    where[0], where[1] = torch.tensor([0.0, 0.5]), torch.tensor([1 - 2**-53, 0.0])
    actual = cutout(x, where)
    for before, after, (row, column) in zip(x, actual, (where * size).floor().int().tolist(), strict=True):
        expected, half = before.clone(), size // 4
        expected[:, max(0, row - half) : row + half, max(0, column - half) : column + half] = 128
        assert torch.equal(after, expected)
    assert (actual[0] == 128).float().mean() == pytest.approx((size // 4) * (size // 4 * 2) / size**2, abs=0.03)


def test_rotate_turns_each_photo_by_its_own_quarter_turns():
    x = images(6)
    where = torch.tensor([[0.0, 0.3, 0.34, 0.5, 0.67, 1 - 2**-53], [0.5] * 6], dtype=torch.float64).T
    for before, after, turns in zip(x, rotate(x, where), (1, 1, 2, 2, 3, 3), strict=True):
        assert np.array_equal(after.numpy(), np.rot90(before.numpy(), turns, (1, 2)))


def naive_bits(seed, count):
    """SplitMix64 of Steele, Lea & Flood, as published; 16 bits at a time, the lowest first."""
    for _ in range(-(-count // 4)):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        yield from (z >> shift & 0xFFFF for shift in (0, 16, 32, 48))


@pytest.mark.parametrize("size", [4, 5])
def test_noise_is_a_normal_quantile_for_each_16_bits_of_the_hash(size):
    x, where, normal = images(3, size), draws(3), NormalDist()
    for before, after, (strength, seed) in zip(x, noise(x, where), where.tolist(), strict=True):
        sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * strength
        z = [normal.inv_cdf((bits + 0.5) / 2**16) for bits in naive_bits(int(seed * 2**53), before.numel())]
        added = sigma * torch.tensor(z[: before.numel()]).view(3, size, size)
        # half a level is rounding; 1e-4 is float32, of numbers up to 400
        assert (after - (before + added).clamp(0, 255)).abs().max() < 0.5 + 1e-4


def test_noise_is_normal_independent_and_has_each_photos_deviation():
    gray = torch.full((40, 3, 16, 16), 128, dtype=torch.uint8)
    where = draws(40)
    added = noise(gray, where).float() - 128
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * where[:, 0].float()
    z = (added / sigma[:, None, None, None]).flatten(1)  # [40, 768]
    # of 30,720 fixed numbers the mean has a standard deviation of 0.006, the deviation of 0.004, the kurtosis of 0.03
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    assert abs((z**4).mean() - 3) < 0.15
    assert (z.std(1) - 1).abs().max() < 0.1  # of 768 numbers: 0.026
    neighbors = torch.corrcoef(torch.stack([z[:, :-1].flatten(), z[:, 1:].flatten()]))[0, 1]
    assert abs(neighbors) < 0.03
    assert (torch.corrcoef(z) - torch.eye(40)).abs().max() < 0.18  # 780 pairs, each with a deviation of 0.036


def test_each_distortion_has_its_probability():
    x, many = images(1, 8).expand(2000, -1, -1, -1), draws(2000, DISTORTION_DRAWS)
    for name, probability in PROBABILITY.items():
        changed = (distort(x, (name,), many) != x).flatten(1).any(1)
        assert abs(changed.float().mean() - probability) < 0.04, name  # of 2,000 photos: a deviation of 0.011
    turned = distort(x, ("rotate",), many)
    for turns in range(4):
        same = (turned == x.rot90(turns, (2, 3))).flatten(1).all(1)
        assert abs(same.float().mean() - 0.25) < 0.04, turns


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], ("noise", "sobel"), ("cutout",)])
def test_distortions_are_applied_in_their_order_to_the_photos_that_are_drawn(names):
    x, all_draws = images(20), draws(20, DISTORTION_DRAWS)
    actual = distort(x, names, all_draws)
    for row in range(20):
        expected = x[row : row + 1]
        for name in names:
            applied, *own = all_draws[row, DRAWS_EACH * NAMES.index(name) :][:DRAWS_EACH].tolist()
            if applied < PROBABILITY[name]:
                expected = getattr(distortions, name)(expected, torch.tensor([own], dtype=torch.float64))
        assert torch.equal(actual[row], expected[0])  # no function rounds differently in another place of a batch


@pytest.mark.parametrize("value", [0.0, 1 - 2**-53])
def test_all_photos_or_none_may_be_distorted(value):
    x = images(3)
    same = torch.full((3, DISTORTION_DRAWS), value, dtype=torch.float64)
    assert torch.equal(distort(x, NAMES, same), x) == (value > 0)


def rows_of(photos):
    return photos.rows("train")[:12]


def test_views_without_distortions_draw_nothing_more_and_those_with_them_are_distorted_views(photos, monkeypatch):
    rows, counts = rows_of(photos), []
    uniform = BatchSource.uniform
    monkeypatch.setattr(BatchSource, "uniform", lambda *args: counts.append(args[2]) or uniform(*args))
    source = BatchSource(photos, rows, 3, 1, CPU)
    expected = source.render(sample_params(PLAIN, source.shapes, uniform(source, 1, DRAWS_PER_VIEW)))
    all_draws = uniform(source, 1, DRAWS_PER_VIEW + DISTORTION_DRAWS)
    assert torch.equal(all_draws[:, :DRAWS_PER_VIEW], uniform(source, 1, DRAWS_PER_VIEW))
    assert torch.equal(PLAIN.make(source, 1), expected)
    assert counts == [DRAWS_PER_VIEW]
    distorted = with_distortions(*NAMES).make(source, 1)
    assert torch.equal(distorted, distort(expected, NAMES, all_draws[:, DRAWS_PER_VIEW:]))
    assert not torch.equal(distorted, expected)


def with_distortions(*names):
    return View(**{**vars(PLAIN), "distort": names})


@pytest.mark.parametrize("name", NAMES)
def test_a_distorted_view_depends_on_seed_epoch_row_and_position_alone(name, photos):
    rows, view = rows_of(photos), with_distortions(name)
    whole = make_batch(photos, rows, (view, view), seed=1, epoch=2)
    again = make_batch(photos, rows, (view, view), seed=1, epoch=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    order = [7, 2, 11, 0, 5]
    some = make_batch(photos, rows[order], (view, view), seed=1, epoch=2)
    assert all(torch.equal(part, all_rows[order]) for part, all_rows in zip(some, whole, strict=True))

    def effect(seed, epoch, position):
        """Distorts one gray photo by each row's draws."""
        source = BatchSource(photos, rows, seed, epoch, CPU)
        gray = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8).expand(len(rows), -1, -1, -1)
        drawn = source.uniform(position, DRAWS_PER_VIEW + DISTORTION_DRAWS)[:, DRAWS_PER_VIEW:]
        return distort(gray, (name,), drawn)

    first = effect(1, 2, 0)
    assert not any(torch.equal(first, effect(*key)) for key in ((2, 2, 0), (1, 3, 0), (1, 2, 1)))
    assert len(first.unique(dim=0)) > 1


def test_the_batched_renderers_views_are_distorted_the_same_way(photos, monkeypatch):
    """As on a device: its renderer, here with tensors of the CPU."""
    source = BatchSource(photos, rows_of(photos), 3, 1, CPU)
    fused_view = with_distortions("rotate", "cutout").make(source, 0)
    stack = photos.stack(source.rows, CPU)
    other = BatchSource(photos, source.rows, 3, 1, CPU)
    other.__dict__["render"] = lambda params: batched.render(stack, params)  # a cached property
    difference = (with_distortions("rotate", "cutout").make(other, 0).int() - fused_view.int()).abs()
    assert (difference > 1).float().mean() < 1e-4  # as in test_augment.py: only rounding
    params = sample_params(PLAIN, source.shapes, source.uniform(0, DRAWS_PER_VIEW))
    expected = distort(
        batched.render(stack, params), NAMES, source.uniform(0, DRAWS_PER_VIEW + DISTORTION_DRAWS)[:, DRAWS_PER_VIEW:]
    )
    assert torch.equal(with_distortions(*NAMES).make(other, 0), expected)


@pytest.mark.parametrize("shape", [(10, 100), (100, 10), (30, 31), (16, 16)])
def test_a_crop_of_none_is_the_whole_photo(shape):
    params = sample_params(View(8, crop=None), torch.tensor([shape] * 50), draws(50, DRAWS_PER_VIEW))
    assert params.boxes.tolist() == [[0, 0, *shape]] * 50


OFF = {"crop": (1.0, 1.0), "flip": 0, "color_strength": 0, "gray": 0, "blur": 0}
ON = {
    "crop": {"crop": (0.2, 1.0)},
    "color": {"color_strength": 1.0},
    "gray": {"gray": 0.5},
    "blur": {"blur": 0.5},
    **{name: {"distort": (name,)} for name in NAMES},
}


def simclr_views(photos, rows, **settings):
    views = SimCLR.views(SimCLRConfig(**{**OFF, **settings}), 24)
    return make_batch(photos, rows, views, seed=0, epoch=0)


@pytest.mark.parametrize("name", ON)
def test_simclr_applies_each_augmentation_alone(name, photos):
    rows = photos.rows("train")[:24]
    whole, same = simclr_views(photos, rows)
    assert torch.equal(whole, same)
    assert (whole.int() - photos.squares(rows, 24).int()).abs().max() <= 1  # resized, and nothing else
    first, second = simclr_views(photos, rows, **ON[name])
    changed = (first != whole).flatten(1).any(1)
    assert changed.any()
    assert not torch.equal(first, second)
    if name != "crop":
        assert not changed.all()  # each has a probability below 1
    chroma = (first.amax(1).int() - first.amin(1)).flatten(1).amax(1)  # [B], 0 of a gray photo
    assert (chroma == 0).any() == (name == "gray")


def test_simclr_applies_pairs_of_distortions_in_their_order():
    view, other = SimCLR.views(SimCLRConfig(**{**OFF, "crop": (0.2, 1.0), "distort": ["noise", "sobel"]}), 24)
    assert view == other
    assert (view.crop, view.flip, view.gray, view.blur, view.distort) == ((0.2, 1.0), 0, 0, 0, ("noise", "sobel"))


@pytest.mark.parametrize(
    ("names", "message"), [(["noise", "noise"], "named once"), (["solarize"], "'sobel', 'cutout'")]
)
def test_distortions_that_are_unknown_or_named_twice_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        SimCLRConfig(distort=names)


def test_hash_bits_are_those_of_each_seed():
    seeds = torch.tensor([0, 5, 2**53 - 1])
    for seed, row in zip(seeds.tolist(), hash_bits(seeds, 3).tolist(), strict=True):
        parts = [number % 2**64 >> shift & 0xFFFF for number in row for shift in (0, 16, 32, 48)]
        assert parts == list(naive_bits(seed, 12))
