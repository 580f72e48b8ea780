import math

import pytest
import torch
from torch import nn

from components.models.heads import Blocks, mlp, sincos
from components.models.norm import BatchNorm1d
from tests.tolerances import FLOAT32, FLOAT64


def test_mlp_has_the_layers_its_arguments_describe():
    kinds = lambda net: [type(layer).__name__ for layer in net]  # noqa: E731
    assert kinds(mlp(4, 8, 2, norm=False)) == ["Linear", "ReLU", "Linear"]
    assert kinds(mlp(4, 8, 8, 2)) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert kinds(mlp(4, 2, last_norm="plain")) == ["Linear", "BatchNorm1d"]
    assert mlp(4, 8, 2)[0].bias is None
    assert mlp(4, 8, 2, bias=True)[0].bias is not None
    assert [layer.bias is None for layer in (mlp(4, 2)[0], mlp(4, 2, last_bias=False)[0])] == [False, True]
    assert mlp(4, 2, last_norm="plain")[1].weight is None
    scale = mlp(4, 2, last_norm="scale")
    assert scale[0].bias is None
    assert [p.requires_grad for p in scale[1].parameters()] == [True, False]


def test_batch_norm_in_one_process_equals_torchs():
    norm, torch_norm = BatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(5, 3)
    assert torch.equal(norm(x), torch_norm(x))  # by torch's own code
    assert torch.equal(norm.running_var, torch_norm.running_var)


def test_each_sine_position_equals_its_formula():
    positions = sincos(3, 8)
    assert positions.shape == (9, 8)
    for row in range(3):
        for column in range(3):
            expected = []
            for coordinate in (column, row):
                expected += [math.sin(coordinate / 10000 ** (i / 2)) for i in range(2)]
                expected += [math.cos(coordinate / 10000 ** (i / 2)) for i in range(2)]
            assert positions[3 * row + column].tolist() == pytest.approx(expected, abs=FLOAT32)
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        sincos(3, 6)


def naive_blocks(blocks, x):
    """Returns what the formulas of the blocks give for one sequence [M, D], one head and one token at a time."""

    def norm(layer, v):
        std = (v.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return (v - v.mean(-1, keepdim=True)) / std * layer.weight + layer.bias

    for layer in blocks.layers:
        attention = layer.self_attn
        y = norm(layer.norm1, x)
        q, k, v = (y @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
        size = attention.head_dim
        rows = []
        for token in range(len(x)):
            heads = []
            for start in range(0, x.shape[1], size):
                part = slice(start, start + size)
                weights = torch.stack([q[token, part] @ other / math.sqrt(size) for other in k[:, part]]).exp()
                heads.append((weights / weights.sum()) @ v[:, part])
            rows.append(torch.cat(heads))
        x = x + torch.stack(rows) @ attention.out_proj.weight.T + attention.out_proj.bias
        y = norm(layer.norm2, x) @ layer.linear1.weight.T + layer.linear1.bias
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + y @ layer.linear2.weight.T + layer.linear2.bias
    return norm(blocks.norm, x)


def test_blocks_equal_their_formulas_and_tokens_that_are_not_visible_have_no_effect():
    torch.manual_seed(0)
    blocks = Blocks(8, 2, 2).double()
    x = torch.randn(2, 5, 8).double()
    for row, actual in zip(x, blocks(x), strict=True):
        assert torch.allclose(actual, naive_blocks(blocks, row), atol=FLOAT64)
    visible = torch.tensor([[True, False, True, True, False], [True, True, True, True, True]])
    for row, mask, actual in zip(x, visible, blocks(x, visible), strict=True):
        assert torch.allclose(actual[mask], naive_blocks(blocks, row[mask]), atol=FLOAT64)
    assert all(not layer.linear1.bias.any() and layer.linear1.weight.any() for layer in blocks.layers)
    with pytest.raises(ValueError, match="width 8 is not a multiple of heads 3; try 9"):
        Blocks(8, 1, 3)
