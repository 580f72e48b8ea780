"""The tests detect mistakes of other libraries over ranks; keys are shuffled over all ranks as over one."""

import os
import subprocess
import sys
from pathlib import Path

import over_ranks
import pytest
import torch
from safetensors.torch import load_file
from small import SMALL

from tests.tolerances import FLOAT64, PATIENCE

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    out, store = folder / "results.safetensors", folder / "store"
    command = [sys.executable, str(HERE / "over_ranks.py"), str(out), str(prepared), str(store)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    both = [
        subprocess.Popen([*command, rank], env=environment, stderr=subprocess.PIPE, text=True) for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(errors)
    tensors = load_file(out)
    return lambda name: {key.split("|")[1]: x for key, x in tensors.items() if key.split("|")[0] == name}


def assert_same(actual, expected, ignored=()):
    assert set(actual) == set(expected)
    for key, value in expected.items():  # rtol: three steps of a ResNet amplify rounding
        if not key.endswith(tuple(ignored) or ("\0",)):
            assert torch.allclose(actual[key].double(), value.double(), rtol=1e-7, atol=FLOAT64), key


@pytest.mark.parametrize("name", over_ranks.LOSSES)
def test_a_gather_whose_backward_does_not_sum_over_ranks_is_detected(two, name):
    """lightly #1528 (NT-Xent), #1977 (Barlow Twins: a gradient off by the number of ranks)."""
    one = over_ranks.bare(name)
    assert_same(two(f"bare {name}"), one)
    wrong = two(f"unsummed {name}")
    assert torch.allclose(wrong["loss"], one["loss"])  # the loss does not show it
    assert not torch.allclose(wrong["gradient"], one["gradient"], rtol=0.1)


def test_labels_without_the_offset_of_the_rank_are_detected(two):
    """lightly #1177, solo-learn #253: on all ranks but the first the positive is another photo."""
    one = over_ranks.bare("simclr")["loss"]
    assert two("bare simclr")["loss"].item() == pytest.approx(one.item(), abs=FLOAT64)
    assert abs(two("unshifted simclr")["loss"] - one) > 1e-3


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_are_shuffled_over_all_ranks_by_one_permutation(two, photos, symmetric):
    """With batch norm two ranks give what one process does, because groups belong to the batch and not to the machine.

    Only the running statistics, which training does not read, are each rank's own.
    """
    settings = {**SMALL["moco"], "batch_norm_groups": 4, "symmetric": symmetric}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert_same(two(f"shuffled {symmetric}"), over_ranks.run("moco", settings, photos, over_ranks.RESNET), statistics)


def test_the_queue_holds_the_keys_of_all_ranks(two):
    """lightly #1018: a memory bank with the keys of one rank only."""
    results = two("moco")
    assert results["state queue.cursor"].item() == over_ranks.STEPS * over_ranks.BATCH % SMALL["moco"]["queue"]


def test_chunks_under_ddp_give_the_results_of_the_whole_batch(two, photos):
    assert_same(two("chunks"), over_ranks.run("simclr", SMALL["simclr"], photos))
