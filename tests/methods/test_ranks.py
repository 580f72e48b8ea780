"""The number of processes and of micro-batches does not change what any method learns.

Two gloo processes under DDP, each with half of the batch, and one process with two micro-batches take the same steps as
one process with the whole batch: losses, gradients and all state, in double precision.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from small import make
from two_ranks import RESNETS, STARTS, resumes, run, run_local

from components.methods import TRAINED
from components.training import distributed, loop
from tests.families import checkpoint
from tests.tolerances import FLOAT64, PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rank_results(prepared, tmp_path_factory):
    """Results of all methods in each of two processes, from one launch, which takes longer than the methods do."""
    out = tmp_path_factory.mktemp("ranks")
    for _, family in STARTS:
        checkpoint(family, out / "starts" / family)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(Path(__file__).with_name("two_ranks.py")), str(prepared), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "STARTS": str(out / "starts")},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    failed = [json.loads((out / f"failed-{rank}.json").read_text()) for rank in (0, 1)]
    return [load_file(out / f"rank-{rank}.safetensors") for rank in (0, 1)], failed


@pytest.fixture(autouse=True)
def every_loss(monkeypatch):
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)


def results_of(results, prefix):
    """Returns the results whose names start with `prefix`, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in results.items() if key.startswith(prefix)}


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    # rtol: two steps amplify rounding, through batch norm most of all
    for key, value in expected.items():  # atol is for gradients of 0 (key biases, biases before a norm)
        torch.testing.assert_close(actual[key], value, rtol=1e-6, atol=FLOAT64, msg=lambda m, key=key: f"{key}: {m}")


def assert_it_learned(results):
    assert all(f"loss/{step}" in results for step in (0, 1))
    assert max(value.abs().max() for key, value in results.items() if key.startswith("gradient/0/")) > 1e-6


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_the_same_as_one(name, rank_results, photos):
    by_rank, failed = rank_results
    assert name not in failed[0], failed[0][name]
    assert name not in failed[1], failed[1][name]
    alone = run(name, photos, Accelerator(cpu=True))
    assert_it_learned(alone)
    for micro_batches in (1,) if make(name, "vit").needs_full_batch else (1, 2):
        first, second = (results_of(results, f"{name}/{micro_batches}/") for results in by_rank)
        assert by_rank[0]["ranks"] == 2
        assert_same(first, alone)
        assert_same(second, {key: value for key, value in alone.items() if not key.startswith("loss/")})  # rank 0 logs


@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_run_ends_with_bitwise_the_same_weights(name, rank_results, photos):
    """In one process and in two, with teachers, queues, centers, prototypes and the optimizer's state."""
    assert resumes(name, photos, Accelerator(cpu=True)) == []
    assert [results[f"{name}/differs"].item() for results in rank_results[0]] == [0, 0]


@pytest.mark.parametrize("name", RESNETS)
def test_batch_norm_of_a_resnet_uses_the_whole_batch_in_two_processes(name, rank_results, photos):
    alone = run(name, photos, Accelerator(cpu=True), "resnet")
    assert_it_learned(alone)
    first = results_of(rank_results[0][0], f"{name}/resnet/")
    if name == "moco":  # running statistics are of each rank's own groups
        first, alone = (
            {k: v for k, v in results.items() if "running" not in k and "num_batches" not in k}
            for results in (first, alone)
        )
    assert_same(first, alone)


@pytest.mark.parametrize(("name", "family"), STARTS)
def test_a_published_start_trains_the_same_in_two_processes_and_resumes(name, family, rank_results, photos):
    alone = run(name, photos, Accelerator(cpu=True), family)
    assert_it_learned(alone)
    first = results_of(rank_results[0][0], f"{name}/{family}/")
    assert first.pop("differs") == 0
    assert_same(first, alone)
    assert resumes(name, photos, Accelerator(cpu=True), family) == []


@pytest.mark.parametrize("name", TRAINED)
def test_micro_batches_give_the_same_results_or_are_refused(name, photos, monkeypatch):
    acc = Accelerator(cpu=True)
    needs_full_batch = make(name, "vit").needs_full_batch
    monkeypatch.setenv(distributed.MICRO_BATCHES, "2")
    if needs_full_batch:
        with pytest.raises(ValueError, match=re.escape(f"{name} needs the full batch at once: {needs_full_batch}")):
            run(name, photos, acc)
        return
    in_micro_batches = run(name, photos, acc)
    monkeypatch.setenv(distributed.MICRO_BATCHES, "1")
    alone = run(name, photos, acc)
    assert_it_learned(alone)
    assert_same(in_micro_batches, alone)


def test_a_method_that_uses_only_its_own_share_is_detected(rank_results, monkeypatch):
    alone = run_local(Accelerator(cpu=True))
    with pytest.raises(AssertionError, match="not close"):
        assert_same(results_of(rank_results[0][0], "local/1/"), alone)
    monkeypatch.setenv(distributed.MICRO_BATCHES, "2")
    with pytest.raises(AssertionError, match="not close"):
        assert_same(run_local(Accelerator(cpu=True)), alone)
