"""Are a classifier's probabilities true? The calibration error, and one temperature that lowers it.

Labels are one class a photo, int64 [N], or yes or no for each class, bool [N, C], where photos have several.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from components.evaluation.several_labels import labels_loss

BINS = 15  # the paper's
LOWEST, HIGHEST = 0.1, 10.0  # temperatures; where every photo of val is named right, the best one would be 0
HALVINGS = 60  # of the interval, which is then narrower than float64 can tell apart


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Returns the expected calibration error (ECE), 0 … 1, the paper's equation 3. logits: [N, C].

    The mean over photos of |accuracy - mean confidence| of the bin that the confidence of the photo is in. Bin m of M
    holds the confidences in ((m - 1) / M, m / M]. Of several labels, the mean over photos and classes of |share that
    shows the class - mean probability| of the bin that the probability of the class is in.
    """
    if labels.ndim == 2:
        confidence, correct = logits.double().sigmoid().flatten(), labels.double().flatten()
    else:
        confidence, predicted = logits.double().softmax(1).max(1)
        correct = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, correct - confidence)
    return float(gaps.abs().sum() / labels.numel())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the temperature T by which logits / T have the lowest cross-entropy, from LOWEST to HIGHEST.

    The cross-entropy is convex in 1 / T, so the sign of its slope tells on which side the minimum is. logits: [N, C],
    of photos that the classifier was not trained on, at least one.
    """
    logits = logits.double()
    if labels.ndim == 2:  # yes or no is a choice of two, with the logits 0 for no and the class's for yes
        logits, labels = torch.stack((torch.zeros_like(logits), logits), 2).flatten(0, 1), labels.flatten().long()
    label_logits = logits.gather(1, labels[:, None])[:, 0]  # [N]
    low, high = 1 / HIGHEST, 1 / LOWEST  # of the factor 1 / T
    for _ in range(HALVINGS):
        factor = (low + high) / 2
        expected = ((logits * factor).softmax(1) * logits).sum(1)  # [N], of the logit, by the probabilities
        low, high = (factor, high) if float((expected - label_logits).mean()) < 0 else (low, factor)
    return 2 / (low + high)


def calibration(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """Returns the calibration error and the cross-entropy of these photos before and after division by `temperature`.

    logits: [N, C], not divided yet.
    """
    scaled, loss = logits / temperature, labels_loss if labels.ndim == 2 else cross_entropy
    return {
        "ece_before": calibration_error(logits, labels),
        "ece_after": calibration_error(scaled, labels),
        "cross_entropy_before": float(loss(logits, labels)),
        "cross_entropy_after": float(loss(scaled, labels)),
    }
