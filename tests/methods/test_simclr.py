"""SimCLR against the paper's formulas written out as loops. Over ranks: test_over_ranks.py."""

import math
import weakref

import pytest
import torch
from naive import TINY, assert_gradients, network, pixels
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from components.methods import METHODS
from components.methods.losses import nt_xent
from components.methods.simclr import SimCLR, SimCLRConfig
from components.models import chunks
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.training.optim import LARS, Cosine
from components.training.optim import build as optimizer_of
from tests.tolerances import FLOAT32, FLOAT64


def naive_loss(a, b, temperature):
    """Equation 1, one anchor at a time."""
    z = [row / row.norm() for pair in zip(a, b, strict=True) for row in pair]  # 2k-1 and 2k are a pair
    total = 0.0
    for i in range(len(z)):
        partner = i + 1 if i % 2 == 0 else i - 1
        above = torch.exp(z[i] @ z[partner] / temperature)
        below = sum(torch.exp(z[i] @ z[k] / temperature) for k in range(len(z)) if k != i)
        total = total - torch.log(above / below)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient_are_the_papers(temperature):
    torch.manual_seed(0)
    a, b = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    actual, expected = nt_xent(a, b, temperature), naive_loss(a, b, temperature)
    assert actual.item() == pytest.approx(expected.item(), rel=FLOAT32)
    for got, want in zip(torch.autograd.grad(actual, (a, b)), torch.autograd.grad(expected, (a, b)), strict=True):
        assert torch.allclose(got, want, atol=FLOAT32)


def test_equal_pairs_that_are_orthogonal_to_all_others_have_a_closed_form():
    eye = torch.eye(4)
    expected = -math.log(math.exp(2) / (math.exp(2) + 6))  # one partner at cosine 1, six others at 0, temperature 1/2
    assert nt_xent(eye, eye, 0.5).item() == pytest.approx(expected, rel=FLOAT32)


def test_defaults_are_the_papers():
    config = SimCLRConfig()
    assert (config.temperature, config.dim, config.color_strength) == (0.1, 128, 1.0)
    assert config.optimizer == LARS(
        lr=0.3, momentum=0.9, trust=1e-3, weight_decay=1e-6, classic_momentum=True, schedule=Cosine(warmup=0.1)
    )
    view = METHODS["simclr"].method.views(config, 224)[0]
    jitter = view.jitter
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p) == (0.8, 0.8, 0.8, 0.2, 0.8)
    assert (view.crop, view.gray, view.blur, view.flip) == ((0.08, 1.0), 0.2, 0.5, 0.5)


def test_a_batch_without_negatives_raises():
    with pytest.raises(ValueError, match="batch_size 2 over 2 processes leaves no other photo"):
        METHODS["simclr"].method.check(SimCLRConfig(), 100, 2, 2)


def simclr(**settings):
    torch.manual_seed(0)
    return SimCLR(build(TINY), SimCLRConfig(**{"hidden": 6, "dim": 3, **settings})).double().train()


@pytest.mark.parametrize("head", ["none", "v1", "v2"])
def test_several_steps_equal_a_naive_derivation(head):
    method = simclr(head=head)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        views = pixels(step)

        def paper():
            z = torch.from_numpy(network([method.backbone, method.projector], torch.cat(views)))  # noqa: B023
            return naive_loss(*z.chunk(2), 0.1).item()

        optimizer.zero_grad()
        loss = method(views)["loss"]
        loss.backward()
        assert loss.item() == pytest.approx(paper(), abs=FLOAT64)
        if step == 2:
            assert_gradients(method, paper, per=1)
        optimizer.step()


def official_head(head, x):
    """model_util.py of the reference code, layer by layer: every linear layer without bias and followed by batch norm,
    which has a scale and a bias, then ReLU; after the last layer it has a scale alone, and no ReLU follows."""
    layers = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    norms = [layer for layer in head if isinstance(layer, torch.nn.BatchNorm1d)]
    for i, (layer, norm) in enumerate(zip(layers, norms, strict=True)):
        x = x @ layer.weight.T
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * norm.weight
        if i < len(layers) - 1:
            x = (x + norm.bias).clamp_min(0)
    return x


@pytest.mark.parametrize(("head", "layers"), [("linear", 1), ("v1", 2), ("v2", 3)])
def test_each_head_is_the_reference_codes(head, layers):
    projector = simclr(head=head).projector
    for norm in projector:
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.weight.data.normal_()
            if norm.bias.requires_grad:
                norm.bias.data.normal_()
    assert sum(isinstance(layer, torch.nn.Linear) for layer in projector) == layers
    x = torch.randn(7, 8, dtype=torch.float64)
    assert torch.allclose(projector(x), official_head(projector, x), atol=FLOAT64)
    # the last batch norm has no bias that could be trained
    assert projector[-1].weight.requires_grad
    assert not projector[-1].bias.requires_grad
    assert not projector[-1].bias.any()


def test_learning_rates_scale_linearly_or_with_the_square_root():
    """Appendix B.1: 0.3 · batch / 256, or 0.075 · √batch."""
    for batch in (256, 1024, 4096):
        linear, root = SimCLRConfig().optimizer, LARS(lr=1.2, scaling="sqrt")
        assert optimizer_of(simclr(), linear, batch).param_groups[0]["peak"] == pytest.approx(0.3 * batch / 256)
        assert optimizer_of(simclr(), root, batch).param_groups[0]["peak"] == pytest.approx(0.075 * batch**0.5)


def test_color_strength_scales_the_jitter():
    view, _ = SimCLR.views(SimCLRConfig(color_strength=0.5, blur=0), 32)
    assert vars(view.jitter) == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
    assert view.blur == 0


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize("head", ["v1", "v2"])
def test_chunks_give_the_loss_and_gradients_of_the_whole_batch(chunk, head):
    views, results = pixels(0, 6), []
    for size in (0, chunk):
        method = simclr(head=head, chunk=size)
        loss = method(views)["loss"]
        expected = [p for p in method.parameters() if p.requires_grad]
        results.append([loss, *torch.autograd.grad(loss, expected)])
    assert all(torch.allclose(a, b, atol=FLOAT64) for a, b in zip(*results, strict=True))


def test_the_loss_of_half_batches_differs():
    """Unlike chunks, half batches have fewer negatives."""
    method, views = simclr(temperature=1.0), pixels(0, 6)
    halves = [method([view[half] for view in views])["loss"] for half in (slice(0, 3), slice(3, 6))]
    assert abs(method(views)["loss"] - sum(halves) / 2) > 0.1


def test_chunks_raise_if_they_would_change_the_features():
    resnet = build(ResNetBackbone(kind="resnet18", image_size=8))
    with pytest.raises(ValueError, match=r"chunk 4 would change the features.*allowed: 0; try a ViT"):
        SimCLR(resnet, SimCLRConfig(chunk=4))
    SimCLR(resnet, SimCLRConfig())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.seen:
                self.seen.add(key)
                size = tensor.untyped_storage().nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor.untyped_storage(), self.forget, key, size)
        return out

    def forget(self, key, size):
        self.seen.discard(key)
        self.now -= size


def test_chunks_bound_the_memory():
    """A batch four times as large needs little more; encoded at once it needs four times as much."""
    peaks = {}
    shape = ViTBackbone(image_size=32, patch_size=4, width=32, depth=3, heads=2)
    for count in (4, 16):
        for chunk in (0, 2):
            torch.manual_seed(0)
            method = SimCLR(build(shape), SimCLRConfig(hidden=8, dim=4, chunk=chunk))
            views = [torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8) for _ in range(2)]
            with LiveBytes() as live:
                method(views)["loss"].backward()
            peaks[count, chunk] = live.peak
    assert peaks[16, 0] > 3.5 * peaks[4, 0]
    assert peaks[16, 2] < 1.5 * peaks[4, 2]
    assert peaks[16, 2] < peaks[16, 0] / 5


def test_the_loss_is_not_computed_in_half_precision():
    """Autocast would cast the operands of its products to bf16."""
    torch.manual_seed(0)
    a, b = torch.randn(16, 8), torch.randn(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(a, b, 0.1)
    assert loss.item() == nt_xent(a, b, 0.1).item()


def test_chunk_0_is_one_call():
    calls = []
    chunks.encode(lambda x: calls.append(len(x)) or x, torch.zeros(5, 1), 0)
    chunks.encode(lambda x: calls.append(len(x)) or x, torch.zeros(5, 1), 2)
    assert calls == [5, 2, 2, 1]
