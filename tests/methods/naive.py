"""Reference implementations of the papers' formulas in numpy and loops, which several tests of methods compare with."""

import numpy as np
import torch
from torch import nn

from components.models.backbone import Backbone, ViTBackbone
from tests.tolerances import FINITE_DIFFERENCE

TINY = ViTBackbone(image_size=8, patch_size=4, width=8, depth=1, heads=2)


def pixels(seed, count=5):
    """Returns two views, float64 [count, 3, 8, 8] in 0 … 255."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64) * 255 for _ in range(2)]


def network(layers, x):
    """Returns the outputs of a backbone with its head, or of a head alone, in train mode: numpy [B, D]."""
    for layer in layers:
        if isinstance(layer, Backbone):
            with torch.no_grad():
                x = layer(x).numpy()
        elif isinstance(layer, nn.Sequential):
            x = network(layer, x)
        elif isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().numpy().T
            x = x + (layer.bias.detach().numpy() if layer.bias is not None else 0)
        elif isinstance(layer, nn.BatchNorm1d):
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            if layer.affine:
                x = x * layer.weight.detach().numpy() + layer.bias.detach().numpy()
        elif not isinstance(layer, nn.Identity):
            assert isinstance(layer, nn.ReLU)
            x = np.maximum(x, 0)
    return x


def assert_gradients(method, loss, per=3, step=1e-6):
    """Asserts that gradients of `method` are the central differences of `loss()`, at the `per` largest entries of each
    parameter's gradient and at a random one."""
    for name, p in method.named_parameters():
        if not p.requires_grad:
            continue
        flat, grad = p.data.view(-1), p.grad.view(-1)
        places = {*grad.abs().topk(min(per, len(grad))).indices.tolist(), int(torch.randint(len(grad), ()))}
        for place in places:
            before, values = flat[place].item(), []
            for moved in (before + step, before - step):
                flat[place] = moved
                values.append(loss())
            flat[place] = before
            expected = (values[0] - values[1]) / (2 * step)
            assert abs(grad[place].item() - expected) < FINITE_DIFFERENCE * max(1.0, abs(expected)), (name, place)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def dino_head(head, features):
    """Linear, exact GELU, linear, GELU, linear; unit length; cosine with every prototype."""
    x, weights = features.detach(), [p.detach() for p in head.mlp.parameters()]
    for i in range(0, len(weights), 2):
        x = x @ weights[i].T + weights[i + 1]
        if i < len(weights) - 2:
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    x, w = x.numpy(), head.last.weight.detach().numpy()
    return x @ w.T / np.sqrt((x**2).sum(1))[:, None] / np.sqrt((w**2).sum(1))


def cross_entropy(target, logits):
    return -float(np.sum(target * np.log(softmax(logits))))


def naive_sinkhorn(scores, temperature, rounds=3):
    """Sinkhorn-Knopp as in SwAV's pseudo-code: a matrix of prototypes by pictures with the mass 1."""
    q = np.exp(np.asarray(scores) / temperature).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(rounds):
        for row in range(k):
            q[row] /= q[row].sum() * k
        for column in range(b):
            q[:, column] /= q[:, column].sum() * b
    return (q * b).T


def assert_directional_gradients(method, loss, naive, among=lambda name: True):
    """Asserts that each parameter's gradient, along a random direction, is the naive loss's finite difference."""
    method.zero_grad()
    loss.backward()
    torch.manual_seed(7)
    for name, p in method.named_parameters():
        if not p.requires_grad or not among(name):
            continue
        direction, at = torch.randn_like(p), p.detach().clone()
        values = []
        for sign in (1, -1):
            p.data = at + sign * 1e-7 * direction
            values.append(naive())
        p.data = at
        expected = (values[0] - values[1]) / 2e-7
        actual = float((p.grad * direction).sum())
        assert abs(actual - expected) <= FINITE_DIFFERENCE * max(1, abs(expected)), (name, actual, expected)
