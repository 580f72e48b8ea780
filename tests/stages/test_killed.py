"""A stage that is killed by SIGKILL, as in a power failure, and started again gives the same weights."""

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file
from test_stages import PARAMS

ROOT = Path(__file__).parents[2]


# saves a state every ten steps; with an argument more it waits after the third, to be killed
OFTEN = """
import pathlib, sys, time
from components.stages.pretrain import main
from components.training import checkpoints, loop
loop.SAVE_SECONDS = -1
if sys.argv[1] == "wait":
    save = checkpoints.save
    def saved_and_waiting(folder, step, *state):
        bad = save(folder, step, *state)
        if step == 30:
            pathlib.Path("waiting").touch()
            time.sleep(3600)
        return bad
    checkpoints.save = saved_and_waiting
    del sys.argv[1]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_stage_resumes_and_ends_in_the_same_weights(processes, prepared, tmp_path):
    params = {**PARAMS, "moco": {**PARAMS["moco"], "epochs": 50}}  # of 4 steps
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"pretrain": params}))
    (tmp_path / "often.py").write_text(OFTEN)

    def start(name, *wait):
        stage = ["often.py", *wait, "--method", "moco", "--data", str(prepared), "--out", name]
        if processes > 1:
            stage = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *stage]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["SELFSIGHT_SCRATCH"] = str(tmp_path / "scratch" / name)
        return subprocess.Popen(
            [sys.executable, *stage],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def weights(name):
        return load_file(next((tmp_path / name / "backbone").glob("*.safetensors")))

    whole = start("whole")
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    assert f"processes: {processes}, " in output

    cut = start("cut", "wait")
    while not (tmp_path / "waiting").exists():
        assert cut.poll() is None, cut.communicate()[0]
        time.sleep(0.01)
    for process in [psutil.Process(cut.pid), *psutil.Process(cut.pid).children(recursive=True)]:
        process.kill()
    cut.communicate()
    assert not (tmp_path / "cut" / "backbone").exists()

    again = start("cut")
    output = again.communicate()[0]
    assert "moco: resumed at step 30 of 200" in output
    expected, actual = weights("whole"), weights("cut")
    assert all(expected[name].equal(actual[name]) for name in expected)


@pytest.mark.slow
def test_a_run_whose_parent_was_killed_is_not_started_twice(prepared, tmp_path):
    """DVC is the parent of a stage; a stage survives `kill -9` of it, and keeps the lock of its state."""
    params = {**PARAMS, "moco": {**PARAMS["moco"], "epochs": 1_000_000}}  # the test stops it
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"pretrain": params}))
    (tmp_path / "often.py").write_text(OFTEN)
    command = [sys.executable, "often.py", "--method", "moco", "--data", str(prepared), "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SELFSIGHT_SCRATCH": str(tmp_path / "scratch")}

    def start(*command):
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    parent = start("sh", "-c", f"{shlex.join(command)} > first.log 2>&1 & wait")
    while not (states := list(tmp_path.glob("scratch/pretrain/*/step-*.safetensors"))):
        assert parent.poll() is None, (tmp_path / "first.log").read_text()
        time.sleep(0.01)
    lock = states[0].with_name("lock")
    pid = int(lock.read_text())
    try:
        os.kill(pid, signal.SIGSTOP)  # it cannot end meanwhile
        parent.kill()
        parent.communicate()

        second = start(*command)
        output = second.communicate()[0]
        assert second.returncode == 1, output
        assert f"process {pid} is doing this same run" in output

        os.kill(pid, signal.SIGTERM)
    finally:
        os.kill(pid, signal.SIGCONT)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits until the first has ended
    assert "the same command continues from there" in (tmp_path / "first.log").read_text()

    third = start(*command)
    try:
        assert any(re.search(r"moco: resumed at step [1-9]", line) for line in third.stdout)
    finally:
        third.kill()
        third.communicate()
