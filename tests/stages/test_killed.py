"""A stage that is killed without a word, as when power fails, and started again ends where it would have ended."""

import os
import re
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


# a state as often as the loop looks whether one is due
OFTEN = """
from components.stages.pretrain import main
from components.training import loop
loop.SAVE_SECONDS = -1
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigkill_costs_time_and_nothing_else(processes, prepared, tmp_path):
    params = {**PARAMS, "moco": {**PARAMS["moco"], "epochs": 50}}  # of 4 steps
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"pretrain": params}))
    (tmp_path / "often.py").write_text(OFTEN)

    def start(name):
        stage = ["often.py", "--method", "moco", "--data", str(prepared), "--out", name]
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

    cut = start("cut")
    while not list((tmp_path / "scratch" / "cut").rglob("step-*.safetensors")):
        assert cut.poll() is None, cut.communicate()[0]
        time.sleep(0.01)
    for process in [psutil.Process(cut.pid), *psutil.Process(cut.pid).children(recursive=True)]:
        process.kill()
    cut.communicate()
    assert not (tmp_path / "cut" / "backbone").exists()

    again = start("cut")
    said = again.communicate()[0]
    assert re.search(r"moco: resumed at step [1-9]\d*0 of 200", said)
    wanted, found = weights("whole"), weights("cut")
    assert all(wanted[name].equal(found[name]) for name in wanted)
