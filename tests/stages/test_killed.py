"""A stage that is killed without a word, as when power fails, and started again ends where it would have ended."""

import os
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
def test_sigkill_costs_time_and_nothing_else(processes, prepared, tmp_path):
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
    said = whole.communicate()[0]
    assert whole.returncode == 0, said
    assert f"processes: {processes}, " in said

    cut = start("cut", "wait")
    while not (tmp_path / "waiting").exists():
        assert cut.poll() is None, cut.communicate()[0]
        time.sleep(0.01)
    for process in [psutil.Process(cut.pid), *psutil.Process(cut.pid).children(recursive=True)]:
        process.kill()
    cut.communicate()
    assert not (tmp_path / "cut" / "backbone").exists()

    again = start("cut")
    said = again.communicate()[0]
    assert "moco: resumed at step 30 of 200" in said
    wanted, found = weights("whole"), weights("cut")
    assert all(wanted[name].equal(found[name]) for name in wanted)
