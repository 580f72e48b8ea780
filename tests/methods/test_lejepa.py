"""Against the paper's formulas in numpy, one direction and one frequency at a time, and against closed forms."""

import math

import numpy as np
import pytest
import torch

from components.methods import METHODS
from components.methods.lejepa import LeJEPA, LeJEPAConfig, sigreg
from components.models.backbone import ViTBackbone, build
from components.training.optim import AdamW, Cosine
from tests.tolerances import FINITE_DIFFERENCE, FLOAT64

TINY = ViTBackbone(image_size=16, patch_size=4, width=8, depth=1, heads=2)
LIKE_A_NORMAL = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)  # ∫ (1 - exp(-t²)) exp(-t² / 2) dt, all t


def lejepa(**settings):
    torch.manual_seed(0)
    values = {
        "embedding": 10,
        "hidden": 12,
        "dim": 3,
        "slices": 6,
        "global_views": 2,
        "local_views": 2,
        "local_size": 8,
        **settings,
    }
    return LeJEPA(build(TINY), LeJEPAConfig(**values)).double().train()


def data(seed=0, count=5):
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, side, side, generator=random).double() * 255 for side in (16, 16, 8, 8)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def directions_of(seed, dim, slices):
    drawn = torch.randn(dim, slices, generator=seeded(seed)).double().numpy()
    return drawn / np.sqrt((drawn**2).sum(0))


def naive_sigreg(z, directions):
    """Returns N times the Epps-Pulley distance by the trapezoid rule at 17 knots: mean over views and directions."""
    distances, step = [], 3 / 16
    for view in z:
        for a in directions.T:
            total = 0.0
            for knot in range(17):
                t = knot * step
                real = np.mean([math.cos(t * (row @ a)) for row in view])
                imaginary = np.mean([math.sin(t * (row @ a)) for row in view])
                weight = step if knot in (0, 16) else 2 * step
                total += weight * ((real - math.exp(-(t**2) / 2)) ** 2 + imaginary**2) * math.exp(-(t**2) / 2)
            distances.append(len(view) * total)
    return np.mean(distances)


def test_sigreg_is_the_papers_formula_and_so_is_its_gradient():
    z = torch.randn(2, 7, 3, generator=seeded(5)).double().requires_grad_()
    directions = directions_of(4, 3, 6)
    actual = sigreg(z, 6, 17, 3.0, seeded(4))
    assert actual.item() == pytest.approx(naive_sigreg(z.detach().numpy(), directions), abs=FLOAT64)
    (gradient,) = torch.autograd.grad(actual, z)
    for place in [(0, 0, 0), (1, 3, 2), (0, 6, 1)]:
        up, down = z.detach().numpy().copy(), z.detach().numpy().copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (naive_sigreg(up, directions) - naive_sigreg(down, directions)) / 2e-5
        assert gradient[place].item() == pytest.approx(slope, abs=FINITE_DIFFERENCE)


def test_loss_and_gradient_are_the_papers():
    method = lejepa(weight=0.05)
    method.before_step(0.25)
    losses = method(data())
    z = method.projector(method.embedding(torch.cat([method.backbone(view) for view in data()]))).view(4, 5, 3)
    center = (z[0] + z[1]) / 2
    invariance = sum(((view - center) ** 2).sum() for view in z) / z.numel()
    normality = naive_sigreg(z.detach().numpy(), directions_of(int(0.25 * 2**53), 3, 6))
    assert losses["invariance"].item() == pytest.approx(invariance.item(), abs=FLOAT64)
    assert losses["sigreg"].item() == pytest.approx(normality, abs=FLOAT64)
    assert losses["loss"].item() == pytest.approx(0.95 * invariance.item() + 0.05 * normality, abs=FLOAT64)


def test_sigreg_of_a_normal_distribution_is_constant_in_n_and_grows_for_others():
    """The factor N (and, over ranks, the number of ranks): without it a larger batch regularizes less."""
    small, large = (torch.randn(300, n, 4, generator=seeded(1)).double() for n in (20, 160))
    for clouds in (small, large):
        assert sigreg(clouds, 10, 17, 3.0, seeded(2)).item() == pytest.approx(LIKE_A_NORMAL, rel=0.1)  # 300 clouds
    few, many = (sigreg(clouds + 3, 10, 17, 3.0, seeded(2)).item() for clouds in (small, large))
    assert many / few == pytest.approx(8, rel=0.1)  # the part that does not grow with N is small


def test_seventeen_knots_approximate_the_integral():
    z = torch.randn(1, 50, 2, generator=seeded(3)).double() * 2
    coarse, fine = (sigreg(z, 10, knots, 3.0, seeded(0)).item() for knots in (17, 2001))
    assert coarse == pytest.approx(fine, rel=0.01)  # that is how well 17 suffice


def test_sigreg_of_collapsed_embeddings_has_a_closed_form():
    z = torch.zeros(1, 10, 4).double()  # φ̂ is 1 everywhere
    root = lambda a: math.sqrt(math.pi / a) * math.erf(3 * math.sqrt(a))  # noqa: E731  ∫ exp(-a t²), -3 … 3
    expected = 10 * (root(0.5) - 2 * root(1.0) + root(1.5))
    assert sigreg(z, 5, 2001, 3.0, seeded()).item() == pytest.approx(expected, rel=1e-5)  # error of the trapezoid rule


@pytest.mark.parametrize("view", range(4))
@pytest.mark.parametrize("term", ["invariance", "sigreg"])
def test_every_view_enters_both_terms(view, term):
    """A library shipped it without the globals."""
    method = lejepa()
    changed = data()
    changed[view] = changed[view].flip(-1) * 0.5
    embeddings = []
    hook = method.projector.register_forward_hook(lambda _, __, z: embeddings.append(z) or z.retain_grad())
    method(changed)[term].backward()
    hook.remove()
    assert embeddings[0].grad.view(4, 5, 3)[view].abs().amax(1).min() > 1e-6


def test_directions_are_equal_on_all_ranks_and_change_with_every_step():
    """They follow from progress alone: not from a rank's own generator, and not from how often forward ran."""
    method = lejepa()

    def normality(at, seed):
        torch.manual_seed(seed)
        method.before_step(at)
        return method(data())["sigreg"].item()

    assert normality(3 / 1000, 1) == normality(3 / 1000, 2)
    steps = [normality(step / 1_000_000, 0) for step in range(5)]
    assert len(set(steps)) == 5


def test_the_weights_of_both_terms_add_up_to_1():
    """A library weighted one term alone."""
    for weight in (0.0, 0.3, 1.0):
        losses = lejepa(weight=weight)(data())
        expected = (1 - weight) * losses["invariance"] + weight * losses["sigreg"]
        assert losses["loss"].item() == pytest.approx(expected.item(), abs=FLOAT64)


def test_without_local_views_it_is_the_minimal_recipe():
    method = lejepa(local_views=0)
    photos = data()[:2]
    z = method.projector(method.embedding(method.backbone(torch.cat(photos)))).view(2, 5, 3)
    assert method(photos)["invariance"].item() == pytest.approx((z - z.mean(0)).square().mean().item(), abs=FLOAT64)


def test_a_local_size_that_patches_do_not_divide_raises_with_advice():
    with pytest.raises(ValueError, match="local_size 10 is not a multiple of the backbone's patch_size 4; try 8"):
        lejepa(local_size=10)


def test_defaults_are_the_authors():
    config = LeJEPAConfig()
    assert (config.global_views, config.local_views) == (4, 0)
    assert (config.embedding, config.hidden, config.dim) == (512, 2048, 16)
    assert (config.slices, config.knots, config.reach, config.weight) == (256, 17, 3.0, 0.02)
    assert config.optimizer == AdamW(
        lr=2e-3, weight_decay=0.05, decay_all=True, schedule=Cosine(warmup=1 / 800, end=0.5)
    )
    view, *others = METHODS["lejepa"].method.views(config, 128)
    assert [*others] == [view] * 3
    assert (view.size, view.crop, view.gray, view.solarize, view.flip) == (128, (0.08, 1.0), 0.2, 0.2, 0.5)
    assert vars(view.jitter) == {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8}
    method = LeJEPA(build(TINY), config)
    assert tuple(method.embedding.weight.shape) == (512, 8)
    kinds = [type(layer).__name__ for layer in method.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
