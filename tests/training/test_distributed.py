import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components import ranks
from components.methods.losses import nt_xent
from components.training import distributed
from tests.tolerances import FLOAT32, PATIENCE

ROOT = Path(__file__).parents[2]


def test_two_ranks_give_the_loss_and_gradient_of_one(tmp_path):
    out = tmp_path / "results.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(Path(__file__).with_name("ranks.py")), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    torch.manual_seed(0)
    rows, weight = torch.randn(8, 5), torch.randn(5, 3, requires_grad=True)
    loss = nt_xent(rows @ weight, rows.flip(1) @ weight, 0.2)
    loss.backward()
    assert results["ranks"] == 2
    assert results["loss"] == pytest.approx(loss.item(), abs=FLOAT32)
    assert torch.allclose(torch.tensor(results["gradient"]), weight.grad.flatten(), atol=FLOAT32)


def test_with_one_process_gather_is_the_identity():
    x = torch.randn(3, 2)
    assert ranks.gather(x) is x
    assert (ranks.world_size(), ranks.rank()) == (1, 0)


def test_relaunch_runs_torchrun_only_for_several_processes(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execv", lambda _, argv: calls.append(argv))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(distributed.PROCESSES, raising=False)
    distributed.relaunch("some.module")
    assert calls == []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(distributed.PROCESSES, "2")
    distributed.relaunch("some.module")
    assert "torch.distributed.run" in calls[0]
    assert calls[0][calls[0].index("--nproc-per-node") + 1] == "2"
    monkeypatch.setenv("LOCAL_RANK", "0")
    distributed.relaunch("some.module")
    assert len(calls) == 1  # a worker does not launch again
    monkeypatch.setenv(distributed.PROCESSES, "two")
    with pytest.raises(ValueError, match="is 'two'; allowed: a whole number from 1 on"):
        distributed.relaunch("some.module")
