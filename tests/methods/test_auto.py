"""Settings that are computed from the photos (`auto`)."""

import pytest

from components.methods import auto
from components.methods.auto import TrainingSize


@pytest.mark.parametrize(
    ("photos", "batch", "queue", "prototypes"),
    [
        (60, 8, 16, 16),
        (300, 64, 128, 16),
        (1000, 64, 128, 32),
        (5588, 64, 1024, 256),  # the tuned settings for scenes
        (50_000, 64, 8192, 2048),
        (5_000_000, 64, 65536, 8192),
    ],
)
def test_the_number_of_photos_decides(photos, batch, queue, prototypes):
    assert auto.batch_size(photos) == batch
    size = TrainingSize(photos, batch)
    assert auto.queue_length(size) == queue
    assert auto.prototypes(size) == prototypes


def test_a_queue_holds_a_batch_and_never_more_than_the_photos():
    assert auto.queue_length(TrainingSize(photos=60, batch_size=50)) == 60
    assert auto.batch_size(3) == 2


@pytest.mark.parametrize(
    ("side", "patch_size", "pixels"),
    [(64, 8, 40), (32, 8, 32), (32, 1, 32), (36, 8, 32), (128, 8, 80), (256, 16, 160), (96, 16, 48), (8, 16, 16)],
)
def test_the_packed_photos_decide_the_size_of_views(side, patch_size, pixels):
    assert auto.image_size(side, patch_size) == pixels
