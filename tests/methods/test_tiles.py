"""A tile at a time gives what the whole table gives, and never makes the table."""

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from components.methods import tiles
from components.methods.tiles import AcrossViews, NTXent


def rows(*shape):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(sum(shape)))


def whole_nt_xent(mine, everyone, offset, temperature):
    logits = mine @ everyone.T / temperature
    row = torch.arange(len(mine))
    hidden = torch.zeros_like(logits, dtype=torch.bool)
    hidden[row, offset + row] = True
    return cross_entropy(logits.masked_fill(hidden, -torch.inf), offset + (row + len(mine) // 2) % len(mine))


def whole_views(targets, logits, temperature):
    pairs = [
        -(target * log_softmax(said / temperature, -1)).sum(-1).mean()
        for t, target in enumerate(targets)
        for v, said in enumerate(logits)
        if t != v
    ]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("size", [1, 3, 5, 1024])
@pytest.mark.parametrize("offset", [0, 10])
def test_nt_xent_in_tiles_is_nt_xent(size, offset, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", size)
    found = []
    for loss in (NTXent.apply, whole_nt_xent):
        everyone = normalize(rows(30, 4), dim=1).requires_grad_()
        mine = everyone[offset : offset + 10].detach().requires_grad_()
        value = loss(mine, everyone, offset, 0.1)
        (3 * value).backward()
        found.append((value.detach(), mine.grad, everyone.grad))
    for ours, wanted in zip(*found, strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("targets", "views"), [(2, 2), (2, 6), (1, 3)])
def test_cross_entropy_across_views_is_the_double_loop(targets, views):
    t = rows(targets, 5, 7).softmax(-1)
    found = []
    for loss in (AcrossViews.apply, whole_views):
        logits = rows(views, 5, 7).requires_grad_()
        value = loss(t, logits, 0.1)
        (3 * value).backward()
        found.append((value.detach(), logits.grad))
    for ours, wanted in zip(*found, strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation made."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.most = max(self.most, out.numel())
        return out


def test_the_whole_table_is_never_made():
    z = normalize(torch.randn(4096, 8), dim=1)
    with Largest() as seen:
        NTXent.apply(z, z, 0, 0.1)
    assert seen.most == tiles.ROWS * 4096
    logits, targets = torch.randn(10, 16, 512), torch.randn(2, 16, 512).softmax(-1)
    with Largest() as seen:
        AcrossViews.apply(targets, logits, 0.1)
    assert seen.most == logits.numel()  # its gradient, and nothing else of that size
