"""Derivations that several tests of methods compare with, from the papers' formulas, in numpy and loops."""

import numpy as np
import torch


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


def even_shares(scores, temperature, rounds=3):
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


def slopes_agree(method, loss, naive, among=lambda name: True):
    """Every trainable parameter's gradient, along one random direction, is the naive loss's finite difference."""
    method.zero_grad()
    loss.backward()
    torch.manual_seed(7)
    for name, p in method.named_parameters():
        if not p.requires_grad or not among(name):
            continue
        direction, at = torch.randn_like(p), p.detach().clone()
        values = []
        for sign in (1, -1):
            p.data = at + sign * 1e-6 * direction
            values.append(naive())
        p.data = at
        wanted = (values[0] - values[1]) / 2e-6
        found = float((p.grad * direction).sum())
        assert abs(found - wanted) <= 1e-6 * max(1, abs(wanted)), (name, found, wanted)
