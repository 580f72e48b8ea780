"""Linear classification (a "linear probe"): logistic regression on frozen, standardized features.

The strength of its L2 penalty is chosen on the val split, never on test (Kornblith et al., Do Better ImageNet Models
Transfer Better?, CVPR 2019, appendix A.4). https://arxiv.org/abs/1805.08974
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
MIDDLE = PENALTIES[len(PENALTIES) // 2]  # used if there is no val split to choose one


def fit(features: Tensor, labels: Tensor, classes: int, penalty: float, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Returns weight [C, D] and bias [C] that minimize the mean cross-entropy + penalty / 2 · ‖weight‖², by L-BFGS."""
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = cross_entropy(features @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()


def probe(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: Tensor, classes: int) -> tuple[Tensor, float]:
    """Returns the class of each test row, int64 [Q], and the penalty: the best on val, the middle one if val is empty.

    train, val: (features, labels). All features are standardized alike.
    """
    if not len(val[1]):
        weight, bias = fit(*train, classes, MIDDLE)
        return (test @ weight.T + bias).argmax(1), MIDDLE
    best = (-1.0, 0.0, test.new_zeros(len(test), dtype=torch.long))
    for penalty in PENALTIES:
        weight, bias = fit(*train, classes, penalty)
        accuracy = float(((val[0] @ weight.T + bias).argmax(1) == val[1]).float().mean())
        if accuracy > best[0]:
            best = (accuracy, penalty, (test @ weight.T + bias).argmax(1))
    return best[2], best[1]
