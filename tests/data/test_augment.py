"""With the same parameters every step equals torchvision's; the parameters have torchvision's distributions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from components.data import batched, fused, view_kernels
from components.data.augment import (
    CROP_DRAWS,
    DRAW_NAMES,
    DRAWS_PER_VIEW,
    ORDERS,
    Jitter,
    View,
    crop_boxes,
    sample_params,
)
from components.data.batched import color, shift_hue
from components.data.fields import Draws, Labels, make_batch
from components.data.photos import Photos
from components.data.randomness import expand_draws, hash_uniform
from components.data.scenes import draw
from components.data.view_params import GRAY, ViewParams
from tests.tolerances import FLOAT32

ROWS = np.arange(8)
ROOT = Path(__file__).parents[2]


def smooth_images(count=6, size=24):
    """Returns smooth random images, float [count, 3, size, size] of whole numbers in 0 … 255."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255).round()


def test_draws_depend_on_seed_epoch_row_and_view_only():
    whole = hash_uniform(3, 5, ROWS, 1, 4)
    assert torch.equal(whole[2:5], hash_uniform(3, 5, ROWS[2:5], 1, 4))
    assert torch.equal(whole.flip(0), hash_uniform(3, 5, ROWS[::-1].copy(), 1, 4))
    others = [
        hash_uniform(4, 5, ROWS, 1, 4),
        hash_uniform(3, 6, ROWS, 1, 4),
        hash_uniform(3, 5, ROWS + 8, 1, 4),
        hash_uniform(3, 5, ROWS, 2, 4),
    ]
    assert all(not torch.isclose(whole, other).any() for other in others)


def test_draws_are_uniform_and_independent():
    draws = hash_uniform(0, 0, np.arange(20_000), 0, 8)
    assert 0 <= draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    # fixed draws; of 20,000 the mean has a standard deviation of 0.002, the variance of 0.0005, correlations of 0.007
    assert torch.allclose(draws.mean(0), torch.full((8,), 0.5, dtype=draws.dtype), atol=0.01)
    assert torch.allclose(draws.var(0), torch.full((8,), 1 / 12, dtype=draws.dtype), atol=0.003)
    assert (torch.corrcoef(draws.T) - torch.eye(8)).abs().max() < 0.03
    steps = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert abs(steps) < 0.03


def test_expand_draws_seeds_splitmix64_with_two_draws():
    draws = torch.tensor([[0.0, 0.0], [0.25, 0.5], [1 - 2**-24, 1 - 2**-24]])
    for row, (high, low) in zip(expand_draws(draws, 3), draws.tolist(), strict=True):
        state = (int(high * 2**24) << 24) + int(low * 2**24)
        for value in row.tolist():  # SplitMix64 of Steele, Lea & Flood, as published
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            assert value == ((z ^ z >> 31) >> 40) / 2**24
    many = expand_draws(hash_uniform(0, 0, np.arange(20_000), 0, 2).float(), 6)
    assert 0 <= many.min() < 1e-3
    assert 1 - 1e-3 < many.max() < 1
    # as above
    assert torch.allclose(many.mean(0), torch.full((6,), 0.5), atol=0.01)
    assert (torch.corrcoef(many.T) - torch.eye(6)).abs().max() < 0.03


def test_crops_have_torchvisions_distribution():
    view, count = View(16, crop=(0.2, 1.0)), 4000
    shape = torch.tensor([[48, 64]]).repeat(count, 1)
    actual = crop_boxes(shape, view, hash_uniform(0, 0, np.arange(count), 0, 22)).double()
    torch.manual_seed(0)
    image, crop = torch.zeros(3, 48, 64), v2.RandomResizedCrop(16, scale=(0.2, 1.0))
    sampled = [crop.make_params([image]) for _ in range(count)]
    expected = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in sampled]).double()
    assert (actual[:, :2] >= 0).all()
    assert (actual[:, 0] + actual[:, 2] <= 48).all()
    assert (actual[:, 1] + actual[:, 3] <= 64).all()
    for actual_column, expected_column in zip(actual.T, expected.T, strict=True):
        # 1.95 · sqrt(2 / 4000): exceeded by chance once in a thousand times
        assert ks_distance(actual_column, expected_column) < 0.045


def ks_distance(a, b):
    """Returns the Kolmogorov-Smirnov distance of two samples: how far apart their distributions are at most."""
    values = torch.cat([a, b]).unique()
    return max(abs(float((a <= x).double().mean() - (b <= x).double().mean())) for x in values)


@pytest.mark.parametrize("shape", [(10, 100), (100, 10), (10, 101), (101, 10)])
def test_if_no_sampled_crop_fits_the_box_is_torchvisions_largest_centered_one(shape):
    draws = torch.full((1, CROP_DRAWS), 0.5, dtype=torch.float64)
    box = crop_boxes(torch.tensor([shape]), View(8, crop=(1.0, 1.0)), draws)
    expected = v2.RandomResizedCrop(8, scale=(1.0, 1.0)).make_params([torch.zeros(3, *shape)])
    assert box[0].tolist() == [expected[name] for name in ("top", "left", "height", "width")]


@pytest.mark.parametrize("shift", [-0.5, -0.13, 0.0, 0.1, 0.4])
def test_hue_shift_equals_torchvisions(shift):
    x = smooth_images()
    expected = tv.adjust_hue(x / 255, shift) * 255
    # of 255: torchvision divides by 255 and computes sectors of the hue in float32
    assert (shift_hue(x, torch.full((len(x),), shift)) - expected).abs().max() < 0.02


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvisions(sigma):
    x = smooth_images()
    expected = tv.gaussian_blur(x, [5, 5], [sigma, sigma])
    assert (batched.blur(x, torch.full((len(x),), sigma), 5) - expected).abs().max() < 255 * FLOAT32


@pytest.mark.parametrize("size", [40, 96, 224])
def test_a_blur_with_the_full_kernel_is_close_to_pillows(size, tmp_path):
    """Most papers' code uses Pillow's GaussianBlur, which approximates a Gaussian by three box blurs.

    Away from the border, which it repeats, it differs from a Gaussian by 1.1 levels on average at 40 pixels, where the
    blur itself changes up to 15, and by less at larger sizes. A kernel of a tenth of the view, 5 pixels of 40, differs
    by 5 levels.
    """
    images = [Image.fromarray(draw(0, index).pixels).resize((size, size)) for index in range(8)]
    photos, rows = packed(tmp_path, [np.asarray(image) for image in images]), np.arange(8)
    sampled = sample_params(View(size, blur=1.0), torch.tensor([[size, size]]), torch.zeros(1, DRAWS_PER_VIEW))
    assert sampled.blur_kernel_size == 13
    for sigma in (0.1, 0.3, 0.5, 1.0, 1.5, 2.0):
        blurred = [np.asarray(image.filter(ImageFilter.GaussianBlur(radius=sigma))).copy() for image in images]
        expected = torch.from_numpy(np.stack(blurred)).permute(0, 3, 1, 2).int()
        params = params_with(8, size, sigma=torch.full((8,), sigma), blur_kernel_size=13)
        for actual in render_both(photos, rows, params):
            inner = (actual.int() - expected)[:, :, 8:-8, 8:-8].abs().float()
            assert inner.mean() < 1.3, sigma


@pytest.mark.parametrize(
    ("kernel", "size", "expected"),
    [("full", 224, 13), ("full", 40, 13), ("full", 4, 7), ("tenth", 224, 23), ("tenth", 40, 5), (9, 96, 9), (9, 3, 5)],
)
def test_the_blur_kernel_fits_into_the_view(kernel, size, expected, tmp_path):
    view = View(size, blur=1.0, sigma=(2.0, 2.0), blur_kernel=kernel)
    photos, rows = packed(tmp_path, [draw(0, index).pixels for index in range(4)]), np.arange(4)
    params = sample_params(view, torch.full((4, 2), 64), hash_uniform(0, 0, rows, 0, DRAWS_PER_VIEW))
    assert params.blur_kernel_size == expected
    fused_view, batched_view = render_both(photos, rows, params)
    assert (fused_view.int() - batched_view.int()).abs().max() <= 1


def test_each_image_is_blurred_by_its_own_sigma():
    x, sigma = smooth_images(2), torch.tensor([0.3, 1.7])
    blurred = batched.blur(x, sigma, 5)
    assert torch.allclose(blurred[1:], batched.blur(x[1:], sigma[1:], 5), atol=255 * FLOAT32)


PHOTOS = torch.stack([torch.from_numpy(draw(0, index).pixels).permute(2, 0, 1) for index in range(24)])
NOISE = torch.randint(0, 256, (24, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
COLORS = {
    "photos": PHOTOS,
    "bright": 120 + NOISE % 136,
    "dark": NOISE % 40,
    "saturated": torch.where(NOISE > 127, 255, 0).byte(),  # only pure colors, black and white
    "primaries": (torch.eye(3)[torch.arange(24) % 3] * 255).byte()[:, :, None, None].repeat(1, 1, 32, 32),
}
COLOR_STEPS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def torchvision_color(image, order, strengths):
    """Returns one float image [3, S, S] in 0 … 255 after torchvision's own functions, in `order`."""
    x = image / 255
    for kind in order.tolist():
        strength = float(strengths[kind])
        if kind < GRAY:
            x = COLOR_STEPS[kind](x, strength)
        elif strength == 0:
            x = tv.rgb_to_grayscale(x, 3)
    return x * 255


@pytest.mark.parametrize("gray_first", [False, True])
@pytest.mark.parametrize("jitter", [Jitter(0.4, 0.4, 0.4, 0.1, p=1.0), Jitter(1.0, 1.0, 1.0, 0.5, p=1.0)])
@pytest.mark.parametrize("colors", COLORS)
def test_color_steps_equal_torchvisions_in_every_order(colors, jitter, gray_first, tmp_path):
    """torchvision clamps after each step. Both renderers round once, at the end, which changes at most 1/2."""
    images, rows = COLORS[colors], np.arange(24)
    draws = hash_uniform(0, 0, rows, 0, DRAWS_PER_VIEW)
    draws[:, CROP_DRAWS + DRAW_NAMES.index("order")] = torch.arange(24) / 24 + 0.01  # every order once
    view = View(images.shape[-1], jitter=jitter, gray=0.5, gray_first=gray_first)
    params = sample_params(view, torch.full((24, 2), images.shape[-1]), draws)
    assert len(params.order.unique(dim=0)) == 24
    pairs = zip(images, params.order, params.strengths, strict=True)
    expected = torch.stack([torchvision_color(*pair) for pair in pairs])
    unrounded = color(images.float(), params.order, params.strengths)
    assert (unrounded - expected).abs().max() < 0.02  # float32 rounding, most of it in torchvision's own hue
    photos = packed(tmp_path, [image.permute(1, 2, 0).numpy() for image in images])
    color_only = params_with(24, images.shape[-1], order=params.order, strengths=params.strengths)
    for actual in render_both(photos, rows, color_only):
        assert (actual - expected).abs().max() < 0.52


def test_contrast_is_relative_to_the_mean_of_the_clamped_image(tmp_path):
    """With the mean of unclamped pixels a bright image would become all white when its contrast is reduced."""
    image = torch.arange(120, 256).byte()[:128].view(1, 8, 16).repeat(3, 2, 1)
    photos = packed(tmp_path, [image.permute(1, 2, 0).numpy()])
    strengths = torch.tensor([[1.8, 0.3, 1.0, 0.0, 1.0]])
    for actual in render_both(photos, np.arange(1), params_with(1, 16, strengths=strengths)):
        assert 2 < actual.float().std() < 3
        assert actual.max() < 255


def packed(folder, images):
    """Writes uint8 images [h, w, 3] as `prepare` does and returns them as Photos."""
    sizes = np.array([image.size for image in images])
    np.concatenate([image.ravel() for image in images]).tofile(folder / "pixels.bin")
    no_labels = np.full(len(images), -1, np.int32)
    np.savez(
        folder / "index.npz",
        offsets=np.cumsum(sizes) - sizes,
        shapes=np.array([image.shape[:2] for image in images]),
        splits=np.zeros(len(images), np.int8),
        labels=no_labels,
        classes=np.array([], dtype=np.str_),
    )
    return Photos(folder)


def render_both(photos, rows, params):
    """Returns the views of both renderers: the fused one and the batched one."""
    return fused.render(photos.pixels(rows), params), batched.render(photos.stack(rows, torch.device("cpu")), params)


ALL_STEPS = View(24, jitter=Jitter(0.8, 0.8, 0.8, 0.2), gray=0.2, blur=0.5, solarize=0.2)
MOCO_V1 = View(16, jitter=Jitter(0.4, 0.4, 0.4, 0.4, p=1.0), gray=0.2, gray_first=True)


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("view", [ALL_STEPS, MOCO_V1, View(48), View(8, solarize=1.0), View(9, blur=1.0)])
def test_both_renderers_render_the_same_views(view, same_size, tmp_path):
    """Apart from rounding, and from pixels at the threshold that only one of them solarizes."""
    images = [draw(0, index).pixels for index in range(48)]
    if not same_size:
        images = [image[: 30 + index % 20, : 40 + index % 9].copy() for index, image in enumerate(images)]
    photos, rows = packed(tmp_path, images), np.arange(48)[::-1].copy()
    params = sample_params(view, torch.from_numpy(photos.shapes[rows]), hash_uniform(3, 1, rows, 0, DRAWS_PER_VIEW))
    fused_views, batched_views = (views.int() for views in render_both(photos, rows, params))
    assert fused_views.shape == (48, 3, view.size, view.size)
    assert fused_views.float().std() > 20
    difference = (fused_views - batched_views).abs()
    assert (difference > 1).float().mean() < 1e-4
    assert difference.float().mean() < 0.01


def test_rendering_calls_the_kernels_that_were_compiled_beforehand(tmp_path):
    fused.compile_kernels()
    before = list(view_kernels.render_photos.signatures)
    photos, rows = packed(tmp_path, [draw(0, index).pixels for index in range(4)]), np.arange(4)
    draws = hash_uniform(0, 0, rows, 0, DRAWS_PER_VIEW)
    params = sample_params(ALL_STEPS, torch.from_numpy(photos.shapes[rows]), draws)
    fused.render(photos.pixels(rows), params)
    assert list(view_kernels.render_photos.signatures) == before


def test_views_do_not_depend_on_the_number_of_cpu_threads(tmp_path, monkeypatch):
    """To the bit: each photo is rendered by one thread, by the same loops whichever thread it is."""
    photos, rows = packed(tmp_path, [draw(0, index).pixels for index in range(40)]), np.arange(40)
    draws = hash_uniform(0, 0, rows, 0, DRAWS_PER_VIEW)
    params = sample_params(ALL_STEPS, torch.from_numpy(photos.shapes[rows]), draws)
    monkeypatch.setattr(fused, "PHOTOS_PER_THREAD", 8)
    views = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        views.append(fused.render(photos.pixels(rows), params))
    assert torch.equal(*views)


def test_kernels_compile_if_the_cache_folder_is_read_only():
    code = (
        "from numba.core import caching\n"
        "def refuse(self): raise OSError('read-only')\n"
        "for locator in caching.CacheImpl._locator_classes: locator.ensure_cache_path = refuse\n"
        "from components.data import view_kernels\n"
        "import numpy as np\n"
        "out = np.zeros((3, 2, 2), np.uint8)\n"
        "view_kernels._write(np.full((3, 2, 2), 7, np.float32), False, out)\n"
        "print(out.sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "84", done.stderr


def params_with(count, size, **changes):
    """Returns parameters of `count` views that show whole images unchanged, except for `changes`."""
    identity = {
        "size": size,
        "blur_kernel_size": 5,
        "boxes": torch.tensor([[0, 0, size, size]]).repeat(count, 1),
        "flip": torch.zeros(count, dtype=torch.bool),
        "order": torch.arange(5).repeat(count, 1),
        "strengths": torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]).repeat(count, 1),
        "sigma": torch.zeros(count),
        "solarize": torch.zeros(count, dtype=torch.bool),
    }
    return ViewParams(**{**identity, **changes})


@pytest.mark.parametrize("renderer", [0, 1])
def test_each_step_of_a_renderer_equals_torchvisions(renderer, tmp_path):
    x = smooth_images(4, 24).byte()
    photos, rows = packed(tmp_path, [image.permute(1, 2, 0).numpy() for image in x]), np.arange(4)
    strengths = {kind: torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]).repeat(4, 1) for kind in range(5)}
    for kind, value in enumerate((1.2, 0.7, 0.5, 0.13, 0.0)):
        strengths[kind][:, kind] = value
    f = x / 255
    cases = {
        "no step": ({}, f),
        "flip": ({"flip": torch.ones(4, dtype=torch.bool)}, f.flip(3)),
        "brightness": ({"strengths": strengths[0]}, tv.adjust_brightness(f, 1.2)),
        "contrast": ({"strengths": strengths[1]}, tv.adjust_contrast(f, 0.7)),
        "saturation": ({"strengths": strengths[2]}, tv.adjust_saturation(f, 0.5)),
        "hue": ({"strengths": strengths[3]}, tv.adjust_hue(f, 0.13)),
        "gray": ({"strengths": strengths[4]}, tv.rgb_to_grayscale(f, 3)),
        "blur": ({"sigma": torch.full((4,), 1.3)}, tv.gaussian_blur(f, [5, 5], [1.3, 1.3])),
        "solarize": ({"solarize": torch.ones(4, dtype=torch.bool)}, tv.solarize(x, 128) / 255),
    }
    for name, (changes, expected) in cases.items():
        actual = render_both(photos, rows, params_with(4, 24, **changes))[renderer]
        assert (actual - expected * 255).abs().max() <= 0.51, name  # only rounding


@pytest.mark.parametrize("renderer", [0, 1])
@pytest.mark.parametrize("size", [16, 40, 96])
def test_a_resized_box_equals_torchvisions_resized_crop(renderer, size, tmp_path):
    images = [draw(0, index).pixels for index in range(12)]
    photos, rows = packed(tmp_path, images), np.arange(12)
    boxes = torch.tensor([[3, 7, 50, 41], [0, 0, 64, 64], [60, 60, 4, 4], [10, 0, 17, 64]]).repeat(3, 1)
    views = render_both(photos, rows, params_with(12, size, boxes=boxes))[renderer]
    for image, box, actual in zip(images, boxes.tolist(), views, strict=True):
        expected = tv.resized_crop(torch.from_numpy(image).permute(2, 0, 1), *box, [size, size], antialias=True)
        assert (actual.int() - expected.int()).abs().max() <= 1


def test_steps_are_applied_with_their_probabilities():
    count = 3000
    view = View(8, jitter=Jitter(0.8, 0, 0, 0, p=0.8), gray=0.2, blur=0.5, solarize=0.3)
    rows = np.arange(count)
    params = sample_params(view, torch.full((count, 2), 8), hash_uniform(0, 0, rows, 0, DRAWS_PER_VIEW))
    bright, gray = params.strengths[:, 0], params.strengths[:, 4]
    assert abs((bright != 1).float().mean() - 0.8) < 0.03
    assert 0.2 <= bright[bright != 1].min() < 0.21
    assert 1.79 < bright.max() < 1.8
    steps = {"gray": (gray == 0, 0.2), "blur": (params.sigma > 0, 0.5), "solarize": (params.solarize, 0.3)}
    for name, (applied, probability) in {**steps, "flip": (params.flip, 0.5)}.items():
        assert abs(applied.float().mean() - probability) < 0.03, name
    sigma = params.sigma[params.sigma > 0]
    assert 0.1 <= sigma.min() < 0.12
    assert abs(sigma.mean() - 1.05) < 0.05
    assert (params.strengths[:, 1:3] == 1).all()
    assert sorted(map(tuple, params.order[:, :4].unique(dim=0).tolist())) == sorted(map(tuple, ORDERS.tolist()))


def test_views_are_uint8_of_the_right_size_and_do_not_depend_on_the_batch(photos):
    views = (View(24, blur=0.5, gray=0.2, jitter=Jitter(0.4, 0.4, 0.4, 0.1)), View(16))
    rows = photos.rows("train")[:8]
    first, second = make_batch(photos, rows, views, seed=1, epoch=2)
    assert (first.shape, second.shape, first.dtype) == ((8, 3, 24, 24), (8, 3, 16, 16), torch.uint8)
    again = make_batch(photos, rows[[5, 3]], views, seed=1, epoch=2)[0]
    assert torch.equal(again, first[[5, 3]])  # each photo is rendered by itself
    assert not torch.equal(make_batch(photos, rows, views, seed=1, epoch=3)[0], first)


def test_without_crop_and_color_a_view_is_the_resized_photo(photos):
    rows = photos.rows("train")[:4]
    shapes = torch.from_numpy(photos.shapes[rows])
    whole = torch.cat([torch.zeros_like(shapes), shapes], 1)
    actual = fused.render(photos.pixels(rows), params_with(4, 24, boxes=whole))
    assert (actual.int() - photos.squares(rows, 24).int()).abs().max() <= 1


def test_draws_of_a_photo_do_not_depend_on_the_batch_and_are_below_one(photos):
    rows = photos.rows("train")
    views = (View(16), Draws(5), Draws(5))
    _, a, b = make_batch(photos, rows, views, 3, 1)
    assert a.shape == (len(rows), 5)
    assert a.dtype == torch.float32
    assert 0 <= a.min() <= a.max() < 1
    assert not torch.equal(a, b)  # each field has its own draws
    _, part, _ = make_batch(photos, rows[2:5], views, 3, 1)
    assert torch.equal(part, a[2:5])  # independent of the other photos of the batch
    assert not torch.equal(make_batch(photos, rows, views, 3, 2)[1], a)


def test_labels_are_those_of_the_photos(photos):
    rows = photos.rows("train")[[4, 1, 7]]
    pixels, labels = make_batch(photos, rows, (View(16), Labels()), 0, 0)
    assert labels.dtype == torch.int64
    assert [photos.classes[i] for i in labels.tolist()] == [photos.label(row) for row in rows.tolist()]
    assert len(pixels) == 3
