"""Several labels a photo: the loss of independent yes-or-no questions, and the mean average precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

DRAWS, AT_ONCE = 1000, 500  # samples of the bootstrap


def labels_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean over photos and classes of the binary cross-entropy.

    logits: [B, C]; labels: bool [B, C], True where a photo shows the class; weights: of the answers no and yes to each
    class, [2, C].
    """
    losses = binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return losses.mean() if weights is None else (losses * torch.where(labels, weights[1], weights[0])).mean()


def average_precision(scores: Tensor, labels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Returns the average precision of each class, float64 [C]; NaN for a class that no photo shows.

    The mean, over the photos that show the class, of the precision among all photos that score at least as high: the
    area under the steps of precision and recall. Photos with equal scores count together, so that their order does not
    matter. scores: [N, C], higher where the class is more likely; labels: bool [N, C]. counts: how often each photo is
    in each of R samples, [N, R]; the result then is [C, R] of its dtype.
    """
    weights = torch.ones(len(scores), 1, dtype=torch.float64) if counts is None else counts
    precisions = []
    for column, positive in zip(scores.T, labels.T, strict=True):
        levels = column[positive].unique()  # [L] scores of photos that show the class, ascending
        level_counts = torch.searchsorted(levels, column.contiguous(), right=True)  # how many levels each photo reaches
        empty = weights.new_zeros(len(levels) + 1, weights.shape[1])
        new = empty.index_add(0, level_counts[positive], weights[positive])
        new = new.flip(0)[:-1]  # [L, R] that show it, from the top
        total = empty.index_add(0, level_counts, weights).flip(0)[:-1].cumsum(0)  # photos that score at least as high
        precisions.append((new.cumsum(0) / total.clamp_min(1) * new).sum(0) / new.sum(0))  # 0 / 0: none shows it
    result = torch.stack(precisions)
    return result[:, 0] if counts is None else result


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Returns the mean of `average_precision` over the classes that at least one photo shows.

    Raises ValueError if no photo shows any class.
    """
    precisions = average_precision(scores, labels)
    defined = precisions[~precisions.isnan()]
    if not len(defined):
        raise ValueError("no photo has a label; at least one is needed to measure the average precision")
    return float(defined.mean())


def precision_with_ci(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns the mean average precision with its 95 % interval, a bootstrap over photos, as proportion_with_ci does.

    scores, labels: [N, C]; each photo shows at least one class.
    """
    return interval(mean_average_precision(scores, labels), _bootstrap(scores, labels), len(labels), minimum=0.0)


def precision_difference(first: Tensor, second: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns by how much the mean average precision of the scores `first` is above that of `second`, as above.

    Both are measured on the same samples of the photos.
    """
    value = mean_average_precision(first, labels) - mean_average_precision(second, labels)
    return interval(value, _bootstrap(first, labels) - _bootstrap(second, labels), len(labels), minimum=-1.0)


def _bootstrap(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean average precision of DRAWS samples of as many photos, drawn with replacement: [DRAWS].

    A class that no photo of a sample shows takes its precision on all photos, so that every sample is of all classes.
    """
    random, photos, values = torch.Generator().manual_seed(0), len(labels), []
    full_precisions = average_precision(scores, labels).float()
    is_defined = ~full_precisions.isnan()
    for _ in range(DRAWS // AT_ONCE):
        indices = torch.randint(photos, (photos, AT_ONCE), generator=random)
        counts = torch.zeros(photos, AT_ONCE).scatter_add_(0, indices, torch.ones(photos, AT_ONCE))
        precisions = average_precision(scores[:, is_defined], labels[:, is_defined], counts)
        values.append(torch.where(precisions.isnan(), full_precisions[is_defined, None], precisions).mean(0))
    return torch.cat(values)


def interval(value: float, samples: Tensor, photos: int, *, minimum: float) -> dict[str, float]:
    """Returns the 95 % interval, clamped to `minimum` … 1, of samples that are moved to the mean `value`.

    A photo that is drawn twice and shows a class ranks beside its copy, so that the mean of the samples is too high.
    """
    low, high = (samples - samples.mean() + value).clamp(minimum, 1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"value": value, "low": low, "high": high, "of": photos}
