import math

import numpy as np
import pytest
import torch
from naive import TINY, assert_gradients, network, pixels

from components.methods.diet import DIET, DIETConfig
from components.models.backbone import build
from tests.tolerances import FLOAT64

INDEX = torch.tensor([3, 0, 6, 1, 5])


def test_loss_and_gradients_are_cross_entropy_over_the_photos_own_numbers():
    torch.manual_seed(0)
    method = DIET(build(TINY), DIETConfig(photos=7, label_smoothing=0.8)).double().train()
    images = pixels(0)[0]
    assert method.classifier.bias is None

    def paper():
        total = 0.0
        for logits, index in zip(network([method.backbone, method.classifier], images), INDEX.tolist(), strict=True):
            expected = np.full(7, 0.8 / 7)
            expected[index] += 0.2
            total -= expected @ (logits - math.log(np.exp(logits).sum()))
        return total / len(images)

    losses = method([images, INDEX])
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx(paper(), abs=FLOAT64)
    assert_gradients(method, paper)


def test_there_is_one_class_for_each_photo_of_the_data(photos):
    assert DIET.resolve(DIETConfig(), photos).photos == len(photos) == 96
    with pytest.raises(ValueError, match="photos 5, but the data have 96; leave photos out"):
        DIET.resolve(DIETConfig(photos=5), photos)
    with pytest.raises(ValueError, match="photos is 0"):
        DIET(build(TINY), DIETConfig())
