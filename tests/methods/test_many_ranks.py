"""What centers, Sinkhorn, KoLeo and queues know of other ranks: two threads meeting at every collective are two."""

import copy
import threading

import pytest
import torch

from components import ranks
from components.methods.losses import sinkhorn
from components.models.memory import Center
from tests.methods.test_dino import dino
from tests.methods.test_dino import pixels as dino_batch
from tests.methods.test_dinov2 import batch_of as dinov2_batch
from tests.methods.test_dinov2 import dinov2
from tests.methods.test_ibot import batch_of as ibot_batch
from tests.methods.test_ibot import ibot
from tests.methods.test_swav import pixels as swav_batch
from tests.methods.test_swav import swav


@pytest.fixture
def together(monkeypatch):
    """A function that runs work(0) and work(1) at once and returns both results."""
    here, barrier, held = threading.local(), threading.Barrier(2, timeout=60), [None, None]

    def meet(x):
        held[here.rank] = x.detach()
        barrier.wait()
        both = list(held)
        barrier.wait()
        return both

    def run(work):
        results = [None, None]

        def one(rank):
            here.rank = rank
            try:
                results[rank] = work(rank)
            except BaseException:
                barrier.abort()
                raise

        with monkeypatch.context() as patch:
            patch.setattr(ranks, "world", lambda: 2)
            patch.setattr(ranks, "rank", lambda: here.rank)
            patch.setattr(ranks, "total", lambda x: sum(meet(x)))
            patch.setattr(ranks, "gather", lambda x: torch.cat(meet(x)))
            threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return results

    return run


def test_sinkhorn_and_center_on_uneven_ranks_are_those_of_all_vectors(together):
    x = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)).double()
    shares = [x[:2], x[2:]]
    assert torch.allclose(torch.cat(together(lambda rank: sinkhorn(shares[rank], 0.3))), sinkhorn(x, 0.3))

    def center(rank):
        made = Center(5, 0.9).double()
        made.note(shares[rank])
        made.move()
        return made.mean

    for mean in together(center):
        assert torch.allclose(mean, 0.1 * x.mean(0))


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (dino, dino_batch),
        (lambda: dino(targets="sinkhorn"), dino_batch),
        (ibot, ibot_batch),
        (dinov2, dinov2_batch),
        (lambda: swav(queue=4, queue_from=0.0), swav_batch),
    ],
    ids=["dino", "dino-sinkhorn", "ibot", "dinov2", "swav"],
)
def test_two_ranks_have_the_loss_and_the_state_of_one(make, batch, together):
    alone = make()
    pair = [copy.deepcopy(alone), copy.deepcopy(alone)]
    for number in range(3):
        whole = batch(number, 4)
        shares = [[value[:2] for value in whole], [value[2:] for value in whole]]
        wanted = alone(whole)["loss"].item()
        alone.after_step()

        def work(rank, shares=shares):
            loss = pair[rank](shares[rank])["loss"].item()
            pair[rank].after_step()
            return loss

        losses = together(work)
        assert sum(losses) / 2 == pytest.approx(wanted, abs=1e-9)
    for method in pair:
        for name, value in alone.state_dict().items():
            assert torch.allclose(value, method.state_dict()[name], atol=1e-9), name
