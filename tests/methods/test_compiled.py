"""Compiled modules give the results of eager ones, and are really compiled.

With the capture of torch.compile, but without the compiler behind it, which takes minutes.
"""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from small import SHAPES, batch, make
from torch._dynamo.utils import counters

from components.data import batched
from components.data.augment import DRAWS_PER_VIEW, Jitter, View, sample_params
from components.machine import compile_blocks, compiled
from components.methods import TRAINED
from components.models.backbone import build
from components.models.heads import Blocks
from tests.tolerances import FLOAT64

pytestmark = pytest.mark.filterwarnings("default")  # of torch about itself
CAPTURE = "aot_eager"


@pytest.fixture(autouse=True)
def reset_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", TRAINED)
def test_a_compiled_step_equals_an_eager_one(name, photos, monkeypatch):
    deep = SHAPES["vit"].model_copy(update={"depth": 3})
    monkeypatch.setitem(SHAPES, "vit", deep)
    results = []
    for compiling in (False, True):
        method = make(name, "vit").double()
        names = list(method.state_dict())
        if compiling:
            compile_blocks(method, CAPTURE)
        assert list(method.state_dict()) == names
        method.before_step(0.5)
        loss = method(batch(name, photos, 0))["loss"]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in method.parameters() if p.grad is not None)])
    assert all(torch.allclose(a, b, rtol=FLOAT64, atol=FLOAT64) for a, b in zip(*results, strict=True))
    assert 1 <= counters["frames"]["ok"] <= 3  # one program for all blocks, sizes and gradients apart
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    assert not counters["graph_break"]


def test_the_blocks_of_a_decoder_share_one_program():
    plain = Blocks(8, 2, 2).double()
    compiled_net, x, seen = copy.deepcopy(plain), torch.randn(3, 5, 8).double(), torch.rand(3, 5) < 0.7
    seen[:, 0] = True
    compile_blocks(compiled_net, CAPTURE)
    assert torch.allclose(compiled_net(x), plain(x))
    assert torch.allclose(compiled_net(x, seen), plain(x, seen))
    assert counters["frames"] == {"ok": 2, "total": 2}


def test_a_compiled_resnet_equals_an_eager_one():
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    plain = build(SHAPES["resnet"]).double()
    compiled_net = copy.deepcopy(plain)
    compile_blocks(compiled_net, CAPTURE)
    results = [
        [net(pixels), *torch.autograd.grad(net(pixels).square().sum(), list(net.parameters()))]
        for net in (plain, compiled_net)
    ]
    assert all(torch.allclose(a, b, rtol=FLOAT64, atol=FLOAT64) for a, b in zip(*results, strict=True))
    assert counters["frames"] == {"ok": 1, "total": 1}
    assert not counters["graph_break"]
    copy.deepcopy(compiled_net)(pixels)  # as EMA teachers are copied


@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_compiled_views_equal_eager_ones(blur):
    view = View(16, jitter=Jitter(0.4, 0.4, 0.4, 0.1), blur=blur, solarize=0.2, gray=0.2)
    params = sample_params(view, torch.full((8, 2), 32), torch.rand(8, DRAWS_PER_VIEW, dtype=torch.float64))
    x = batched.resize(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), params.boxes, params.flip, 16)
    args = (params.order, params.strengths, params.sigma, params.solarize, params.blur_kernel_size if blur else 0)
    eager, actual = (finish(x.clone(), *args).int() for finish in (batched.finish, compiled(batched.finish, CAPTURE)))
    assert eager.float().std() > 20
    assert (actual - eager).abs().max() <= 1  # float32 rounding may move a value over the half between two levels
    assert counters["frames"] == {"ok": 1, "total": 1}
    assert not counters["graph_break"]


def test_compiler_settings_hold_in_every_thread():
    def settings():
        compiled(batched.finish, CAPTURE)
        return torch._dynamo.config.recompile_limit, torch._dynamo.config.suppress_errors

    compiled(batched.finish, CAPTURE)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(settings).result() == (64, True)


def test_forward_and_backward_are_compiled_in_a_fixed_order(monkeypatch):
    """On a GPU autograd's own thread compiles the backward pass; here another thread does."""
    from torch._inductor import compile_fx  # warns as it is imported

    passes = []

    def inner(graph, inputs, **kwargs):
        passes.append((bool(kwargs.get("is_backward")), torch._inductor.config.deterministic))
        return make_boxed_func(graph.forward)

    whole = compile_fx.compile_fx
    monkeypatch.setattr(compile_fx, "compile_fx", partial(whole, inner_compile=inner))
    net = build(SHAPES["vit"])
    compile_blocks(net)
    loss = net.tokens(torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)).square().sum()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(loss.backward).result()
    assert set(passes) == {(False, True), (True, True)}
