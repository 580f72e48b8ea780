import math

import pytest
import torch
from torch import nn

from components.models.heads import BatchNorm, mlp, sincos


def test_layers_are_the_papers():
    kinds = lambda net: [type(layer).__name__ for layer in net]  # noqa: E731
    assert kinds(mlp(4, 8, 2, norm=False)) == ["Linear", "ReLU", "Linear"]
    assert kinds(mlp(4, 8, 8, 2)) == ["Linear", "BatchNorm", "ReLU"] * 2 + ["Linear"]
    assert kinds(mlp(4, 2, last_norm="plain")) == ["Linear", "BatchNorm"]
    assert mlp(4, 8, 2)[0].bias is None
    assert mlp(4, 8, 2, bias=True)[0].bias is not None
    assert [layer.bias is None for layer in (mlp(4, 2)[0], mlp(4, 2, last_bias=False)[0])] == [False, True]
    assert mlp(4, 2, last_norm="plain")[1].weight is None
    scale = mlp(4, 2, last_norm="scale")
    assert scale[0].bias is None
    assert [p.requires_grad for p in scale[1].parameters()] == [True, False]


def test_alone_batch_norm_is_torchs():
    ours, torchs = BatchNorm(3), nn.BatchNorm1d(3)
    x = torch.randn(5, 3)
    assert torch.equal(ours(x), torchs(x))
    assert torch.equal(ours.running_var, torchs.running_var)


def test_sine_positions_equal_their_formula_place_by_place():
    found = sincos(3, 8)
    assert found.shape == (9, 8)
    for row in range(3):
        for column in range(3):
            wanted = []
            for place in (column, row):
                wanted += [math.sin(place / 10000 ** (i / 2)) for i in range(2)]
                wanted += [math.cos(place / 10000 ** (i / 2)) for i in range(2)]
            assert found[3 * row + column].tolist() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        sincos(3, 6)
