"""State that outlives a run: who may use it, and with what message a stage ends that cannot go on."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from components.data.photos import Photos
from components.methods import METHODS
from components.models.backbone import ViTBackbone, build
from components.precision import PRECISION, uses_bf16
from components.stages import evaluate
from components.stages.evaluate import EvaluateConfig, cached_baselines
from components.stages.exit_code import exit_code
from components.stages.scratch import LockError, clear, exclusive, scratch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFSIGHT_SCRATCH", str(tmp_path / "scratch"))


def test_scratch_is_the_same_for_the_same_run_alone():
    first = scratch("adapt", {"a": 1}, "x")
    assert first == scratch("adapt", {"a": 1}, "x") != scratch("adapt", {"a": 2}, "x")
    assert first != scratch("adapt", {"a": 1}, "x", modules=METHODS["moco"].modules)
    clear(first)
    assert not first.exists()


def test_a_state_is_locked_until_its_run_ends_however_it_ends(tmp_path, monkeypatch):
    acc = Accelerator(cpu=True)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt), exclusive(tmp_path, acc):
            with pytest.raises(LockError, match=f"{os.getpid()} is doing this same run"), exclusive(tmp_path, acc):
                pass
            raise KeyboardInterrupt
    with exclusive(tmp_path, acc):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"

    def unsupported(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with exclusive(tmp_path, acc):
        pass


def test_a_lock_without_the_id_of_its_holder_gives_no_id_to_kill(tmp_path):
    """The file is empty for a moment after it was locked. `kill -1` would end all processes of the user."""
    with (tmp_path / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = "another process is doing this same run, .* stop it, which saves its state"
        with pytest.raises(LockError, match=message), exclusive(tmp_path, Accelerator(cpu=True)):
            pass


LOCKING = """
import pathlib, sys
from accelerate import Accelerator
from components.stages.scratch import exclusive
acc, folder = Accelerator(cpu=True), pathlib.Path(sys.argv[1])
try:
    with exclusive(folder, acc):
        pass
except RuntimeError as error:
    (folder / f"{acc.process_index}.txt").write_text(str(error))
"""


@pytest.mark.slow
def test_a_lock_that_the_system_refuses_ends_all_ranks_with_the_reason(tmp_path):
    (tmp_path / "lock").mkdir()
    (tmp_path / "locking.py").write_text(LOCKING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(tmp_path / "locking.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    expected = f"{tmp_path / 'lock'} cannot be locked: Is a directory"
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == [expected] * 2, done.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("queue 5 is too long"), 2, "adapt: queue 5 is too long\n"),
        (LockError("in use"), 1, "adapt: in use\n"),
        (MemoryError(), 1, "adapt: MemoryError()\n"),
    ],
)
def test_a_stage_that_cannot_go_on_ends_with_a_message_and_a_code(error, code, message, capsys):
    with pytest.raises(SystemExit) as ended, exit_code("adapt", ArgumentParser()):
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == message
    with pytest.raises(KeyError), exit_code("adapt", ArgumentParser()):
        raise KeyError("a mistake of ours")


def test_baselines_are_kept_for_each_precision(prepared, tmp_path, monkeypatch):
    backbone, features = build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2)), []
    backbone.save(tmp_path)

    def measured(*_):
        features.append(uses_bf16())
        return {"bf16": features[-1]}, {"pixels": {"knn": torch.tensor([True, features[-1]])}}

    monkeypatch.setattr(evaluate, "baselines", measured)
    for precision in ("fp32", "bf16", "fp32", "bf16"):
        monkeypatch.setenv(PRECISION, precision)
        kept, correct = cached_baselines(Photos(prepared), backbone, tmp_path, EvaluateConfig())
        assert kept == {"bf16": precision == "bf16"}
        assert correct["pixels"]["knn"].tolist() == [True, precision == "bf16"]
    assert features == [False, True]
