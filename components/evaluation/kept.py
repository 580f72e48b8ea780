"""What of a generated photo can be read from its feature by linear probes: kind, number, colors, place, ground.

A method keeps what its views share and may throw away what they change: with color jitter the colors, by the crops the
places (Xiao et al., What Should Not Be Contrastive in Contrastive Learning, https://arxiv.org/abs/2008.05659).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from components.data.photos import Photos
from components.data.truth import Truth
from components.evaluation.features import standardize
from components.evaluation.linear import PENALTIES
from components.evaluation.several_labels import DRAWS, interval
from components.evaluation.statistics import proportion_with_ci

SPLITS = {"train": 3000, "val": 600, "test": 1600}  # photos at most, so that it takes seconds
COLORS = "colors"


def sampled_rows(photos: Photos) -> list[np.ndarray]:
    """Returns the rows of train, val and test that are measured, always the same."""
    random = np.random.default_rng(0)
    return [np.sort(random.permutation(photos.rows(split))[:limit]) for split, limit in SPLITS.items()]


def targets(truths: Sequence[Truth]) -> dict[str, Tensor]:
    """Returns the targets of all photos, int64 [N] each, as numbers from 0; -1: the photo does not have this target.

    kind; number; place: of three objects, which quarter is empty; ground; and for each color whether an object has it.
    """
    numbers = sorted({truth.number for truth in truths})
    kinds, grounds = sorted({truth.kind for truth in truths}), sorted({truth.ground for truth in truths})
    colors = sorted({color for truth in truths for color in truth.colors})
    columns = {
        "kind": [kinds.index(truth.kind) for truth in truths],
        "number": [numbers.index(truth.number) for truth in truths],
        "place": [6 - sum(truth.quarters) if truth.number == 3 else -1 for truth in truths],  # 0 + 1 + 2 + 3 is 6
        "ground": [grounds.index(truth.ground) for truth in truths],
        **{f"{COLORS} {color}": [int(color in truth.colors) for truth in truths] for color in colors},
    }
    return {name: torch.tensor(values) for name, values in columns.items()}


def measure_kept(parts: Sequence[Tensor], rows: Sequence[np.ndarray], truths: Sequence[Truth]) -> dict[str, Any]:
    """Returns how much of the test photos linear probes read from features, by target, with 95 % intervals and chance.

    Accuracies; of the colors the mean of their balanced accuracies. chance: always the most frequent answer. A target
    is left out if it has a single answer in train, or none in test.
    parts: features [n, D] of the `rows` of train, val and test; truths: of all photos.
    """
    all_targets = targets(truths)
    train, val, test = ({name: values[torch.from_numpy(r)] for name, values in all_targets.items()} for r in rows)
    train = {name: x for name, x in train.items() if len(x[x >= 0].unique()) > 1 and (test[name] >= 0).any()}
    predicted = probe(standardize(*parts), train, val)
    results: dict[str, Any] = {}
    for name in (name for name in predicted if not name.startswith(COLORS)):
        has_answer = test[name] >= 0
        expected, train_labels = test[name][has_answer], train[name][train[name] >= 0]
        num_correct = int((predicted[name][has_answer] == expected).sum())
        num_majority = int((expected == train_labels.mode().values).sum())
        results[name] = {**proportion_with_ci(num_correct, len(expected)), "chance": num_majority / len(expected)}
    if not (names := [name for name in predicted if name.startswith(COLORS)]):
        return results
    true_colors, predicted_colors = (
        torch.stack([source[name] for name in names], 1) == 1 for source in (test, predicted)
    )
    results[COLORS] = {**balanced_with_ci(predicted_colors, true_colors), "chance": 0.5}
    return results


def probe(parts: Sequence[Tensor], train: dict[str, Tensor], val: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns what logistic regression says of each test photo, int64 [Q], by target.

    The penalty of each target is the one that is best on val; the middle one if val is empty. parts: standardized
    features of train, val and test. train, val: targets of the first two.
    """
    sizes = [int(values.max()) + 1 for values in train.values()]
    best: dict[str, tuple[float, Tensor]] = {}
    for penalty in PENALTIES if len(parts[1]) else PENALTIES[2:3]:
        weight, bias = fit(parts[0], list(train.values()), sizes, penalty)
        on_val, on_test = ((x @ weight.T + bias).split(sizes, 1) for x in parts[1:])
        for name, val_logits, logits in zip(train, on_val, on_test, strict=True):
            accuracy = float((val_logits.argmax(1) == val[name]).float().mean())  # -1 never matches, for any penalty
            if name not in best or accuracy > best[name][0]:
                best[name] = accuracy, logits.argmax(1)
    return {name: predicted for name, (_, predicted) in best.items()}


def fit(
    features: Tensor, targets: Sequence[Tensor], sizes: Sequence[int], penalty: float, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Returns weight [sum of sizes, D] and bias of one logistic regression for each target, see linear.fit.

    All are found together, by L-BFGS on the sum of their losses, in one matrix product a step.
    """
    weight = torch.zeros(sum(sizes), features.shape[1], requires_grad=True)
    bias = torch.zeros(sum(sizes), requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = (features @ weight.T + bias).split(list(sizes), 1)
        losses = [cross_entropy(x, y, ignore_index=-1) for x, y in zip(logits, targets, strict=True)]
        value = torch.stack(losses).sum() + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()


def balanced_with_ci(predicted: Tensor, expected: Tensor) -> dict[str, float]:
    """Returns the mean balanced accuracy of yes-or-no questions, with its 95 % interval, a bootstrap over photos.

    predicted, expected: bool [N, C]. The balanced accuracy of a question is the mean of two shares of right answers:
    among the photos for which "yes" is expected, and among the others.
    """
    sides = torch.stack([expected, ~expected], 1).double().flatten(1)  # [N, 2C]
    correct = sides * (predicted == expected).double().repeat(1, 2)
    return mean_share_with_ci(correct, sides)


def mean_share_with_ci(parts: Tensor, wholes: Tensor) -> dict[str, float]:
    """Returns the mean over columns of the sum of parts / the sum of wholes over photos, with its 95 % interval.

    parts, wholes: float64 [N, C]. A column whose whole is 0 does not count. The interval is a bootstrap over photos; a
    sample without a column takes that of all photos.
    """
    photos, has_whole = len(parts), wholes.sum(0) > 0
    parts, wholes = parts[:, has_whole], wholes[:, has_whole]
    shares = parts.sum(0) / wholes.sum(0)
    indices = torch.randint(photos, (DRAWS, photos), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(DRAWS, photos).double().scatter_add_(1, indices, torch.ones(DRAWS, photos).double())
    samples = (counts @ parts) / (counts @ wholes)
    samples = torch.where(samples.isnan(), shares, samples)
    return interval(float(shares.mean()), samples.mean(1).float(), photos, minimum=0.0)
