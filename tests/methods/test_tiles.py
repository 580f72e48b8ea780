"""Losses computed tile by tile equal those of the whole table, which is never allocated."""

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from components.methods import tiles
from components.methods.tiles import AcrossViews, NTXent
from tests.tolerances import FLOAT64


def rows(*shape):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(sum(shape)))


def whole_nt_xent(local, gathered, offset, temperature):
    logits = local @ gathered.T / temperature
    row = torch.arange(len(local))
    masked = torch.zeros_like(logits, dtype=torch.bool)
    masked[row, offset + row] = True
    return cross_entropy(logits.masked_fill(masked, -torch.inf), offset + (row + len(local) // 2) % len(local))


def whole_views(targets, logits, temperature):
    pairs = [
        -(target * log_softmax(view_logits / temperature, -1)).sum(-1).mean()
        for t, target in enumerate(targets)
        for v, view_logits in enumerate(logits)
        if t != v
    ]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("size", [1, 3, 5, 1024])
@pytest.mark.parametrize("offset", [0, 10])
def test_nt_xent_in_tiles_is_nt_xent(size, offset, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", size)
    results = []
    for loss in (NTXent.apply, whole_nt_xent):
        gathered = normalize(rows(30, 4), dim=1).requires_grad_()
        local = gathered[offset : offset + 10].detach().requires_grad_()
        value = loss(local, gathered, offset, 0.1)
        (3 * value).backward()
        results.append((value.detach(), local.grad, gathered.grad))
    for actual, expected in zip(*results, strict=True):
        assert torch.allclose(actual, expected, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize(("targets", "views"), [(2, 2), (2, 6), (1, 3)])
def test_cross_entropy_across_views_is_the_double_loop(targets, views):
    t = rows(targets, 5, 7).softmax(-1)
    results = []
    for loss in (AcrossViews.apply, whole_views):
        logits = rows(views, 5, 7).requires_grad_()
        value = loss(t, logits, 0.1)
        (3 * value).backward()
        results.append((value.detach(), logits.grad))
    for actual, expected in zip(*results, strict=True):
        assert torch.allclose(actual, expected, rtol=FLOAT64, atol=FLOAT64)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returned."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.most = max(self.most, out.numel())
        return out


def test_the_whole_table_is_never_allocated():
    z = normalize(torch.randn(4096, 8), dim=1)
    with Largest() as seen:
        NTXent.apply(z, z, 0, 0.1)
    assert seen.most == tiles.ROWS * 4096
    logits, targets = torch.randn(10, 16, 512), torch.randn(2, 16, 512).softmax(-1)
    with Largest() as seen:
        AcrossViews.apply(targets, logits, 0.1)
    assert seen.most == logits.numel()  # its gradient, and nothing else of that size
