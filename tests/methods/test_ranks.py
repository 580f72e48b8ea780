"""Processes and parts are the machine's business: they change nothing of what any method learns.

Two gloo processes under DDP, each with half of the batch, and one process with the batch in two parts take the same
steps as one process with the whole of it: losses, gradients and all state, in double precision.
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
from two_ranks import RESNETS, resumes, run, run_local

from components.methods import METHODS
from components.training import distributed, loop

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said(prepared, tmp_path_factory):
    """What each of two processes saw of all methods, from one launch: starting takes longer than all of them."""
    out = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(Path(__file__).with_name("two_ranks.py")), str(prepared), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    failed = [json.loads((out / f"failed-{rank}.json").read_text()) for rank in (0, 1)]
    return [load_file(out / f"rank-{rank}.safetensors") for rank in (0, 1)], failed


@pytest.fixture(autouse=True)
def every_loss(monkeypatch):
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)


def part_of(said, start):
    return {key.removeprefix(start): value for key, value in said.items() if key.startswith(start)}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():  # zeros up to rounding aside (key biases, biases before a norm), relative
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def assert_it_learned(found):
    assert all(f"loss/{step}" in found for step in (0, 1))
    assert max(value.abs().max() for key, value in found.items() if key.startswith("gradient/0/")) > 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_learn_what_one_does(name, said, photos):
    of_ranks, failed = said
    assert name not in failed[0], failed[0][name]
    assert name not in failed[1], failed[1][name]
    alone = run(name, photos, Accelerator(cpu=True))
    assert_it_learned(alone)
    for parts in (1,) if make(name, "vit").needs_full_batch else (1, 2):
        first, second = (part_of(found, f"{name}/{parts}/") for found in of_ranks)
        assert of_ranks[0]["ranks"] == 2
        assert_same(first, alone)
        assert_same(second, {key: value for key, value in alone.items() if not key.startswith("loss/")})  # rank 0 logs


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_ends_in_the_same_weights_bit_for_bit(name, said, photos):
    """In one process and in two; teachers, queues, centers, prototypes and the optimizer's state with it."""
    assert resumes(name, photos, Accelerator(cpu=True)) == []
    assert [found[f"{name}/differs"].item() for found in said[0]] == [0, 0]


@pytest.mark.parametrize("name", RESNETS)
def test_batch_norm_of_a_resnet_reads_what_it_would_in_one_process(name, said, photos):
    alone = run(name, photos, Accelerator(cpu=True), "resnet")
    assert_it_learned(alone)
    first = part_of(said[0][0], f"{name}/resnet/")
    if name == "moco":  # running statistics are of each rank's own groups
        first, alone = (
            {k: v for k, v in found.items() if "running" not in k and "num_batches" not in k}
            for found in (first, alone)
        )
    assert_same(first, alone)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_in_parts_is_the_batch_or_is_refused(name, photos, monkeypatch):
    acc = Accelerator(cpu=True)
    needs_full_batch = make(name, "vit").needs_full_batch
    monkeypatch.setenv(distributed.MICRO_BATCHES, "2")
    if needs_full_batch:
        with pytest.raises(ValueError, match=re.escape(f"{name} needs the full batch at once: {needs_full_batch}")):
            run(name, photos, acc)
        return
    in_parts = run(name, photos, acc)
    monkeypatch.setenv(distributed.MICRO_BATCHES, "1")
    alone = run(name, photos, acc)
    assert_it_learned(alone)
    assert_same(in_parts, alone)


def test_the_proof_finds_what_reads_its_own_share_alone(said, monkeypatch):
    alone = run_local(Accelerator(cpu=True))
    with pytest.raises(AssertionError, match="not close"):
        assert_same(part_of(said[0][0], "local/1/"), alone)
    monkeypatch.setenv(distributed.MICRO_BATCHES, "2")
    with pytest.raises(AssertionError, match="not close"):
        assert_same(run_local(Accelerator(cpu=True)), alone)
