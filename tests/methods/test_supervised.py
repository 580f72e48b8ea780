import math

import numpy as np
import pytest
import torch
from naive import TINY, assert_gradients, network, pixels

from components.methods import METHODS
from components.methods.supervised import Supervised, SupervisedConfig
from components.models.backbone import build
from components.training.optim import SGD, multiplier
from tests.tolerances import FLOAT64

LABELS = torch.tensor([0, 2, 1, 1, 0])


class FakePhotos:
    """Photos that have nothing but labels."""

    def __init__(self, labels, classes):
        self.all, self.classes = np.array(labels), classes

    def rows(self, split, labeled=False):
        return np.flatnonzero(self.all >= 0)

    def labels(self, rows):
        return torch.from_numpy(self.all[rows])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_cross_entropy(smoothing):
    torch.manual_seed(0)
    method = Supervised(build(TINY), SupervisedConfig(classes=3, label_smoothing=smoothing)).double().train()
    images = pixels(0)[0]

    def paper():
        total = 0.0
        for logits, label in zip(network([method.backbone, method.classifier], images), LABELS.tolist(), strict=True):
            expected = np.full(3, smoothing / 3)
            expected[label] += 1 - smoothing
            total -= expected @ (logits - math.log(np.exp(logits).sum()))
        return total / len(images)

    losses = method([images, LABELS])
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx(paper(), abs=FLOAT64)
    correct = network([method.backbone, method.classifier], images).argmax(1) == LABELS.numpy()
    assert losses["accuracy"].item() == pytest.approx(correct.mean())
    assert_gradients(method, paper)


def test_classes_come_from_the_data_and_missing_labels_raise_with_advice(photos):
    resolve = METHODS["supervised"].method.resolve
    assert resolve(SupervisedConfig(), photos).classes == len(photos.classes) == 2
    assert resolve(SupervisedConfig(classes=3), FakePhotos([0, 2, -1], "abc")).classes == 3
    with pytest.raises(ValueError, match=r"needs labels, and the train split has 0 class.*one folder a class"):
        resolve(SupervisedConfig(), FakePhotos([-1, -1], ""))
    with pytest.raises(ValueError, match=r"the train split has 1 class"):
        resolve(SupervisedConfig(), FakePhotos([0, 0], "ab"))
    with pytest.raises(ValueError, match="classes 7, but the data have 2; leave classes out"):
        resolve(SupervisedConfig(classes=7), photos)
    with pytest.raises(ValueError, match="classes is 0; allowed: 2 or more"):
        Supervised(build(TINY), SupervisedConfig())


def test_defaults_are_the_papers():
    optimizer = SupervisedConfig().optimizer
    assert isinstance(optimizer, SGD)
    assert (optimizer.lr, optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.1, 0.9, True, 1e-4)
    rates = [multiplier(optimizer.schedule, epoch / 90) for epoch in (1, 5, 29.9, 30.1, 60.1, 80.1)]
    assert rates == pytest.approx([0.2, 1, 1, 0.1, 0.01, 0.001])
    view, _ = Supervised.views(SupervisedConfig(), 224)
    assert (view.crop, view.flip, view.jitter, view.gray, view.blur) == ((0.08, 1.0), 0.5, None, 0.0, 0.0)
