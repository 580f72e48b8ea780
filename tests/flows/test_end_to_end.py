"""Runs the flows with Prefect and DVC as they are, on stages that take no time."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from components.methods import METHODS
from flows.environment import ROOT, SERVER, is_prefect_server
from tests.tolerances import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

STAGE = """
import argparse, os, pathlib, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--method")
args = parser.parse_known_args()[0]
out = args.out
if out is None:  # the check of params.yaml: no problem
    raise SystemExit(0)
print("processes:", os.environ["SELFSIGHT_PROCESSES"], sys.executable, flush=True)
if args.method:
    print(f"{args.method}:  50%|#####     | 2/4 [00:10<00:10]", file=sys.stderr, flush=True)
    print(f"{args.method}: 50 % of the run, step 2: kNN accuracy 0.412; effective rank 9", flush=True)
if pathlib.Path("slow").exists():
    time.sleep(3600)
if pathlib.Path("broken").exists():
    raise SystemExit("this is why")
out.mkdir(parents=True, exist_ok=True)
(out / "report.md").write_text("| method | knn |")
(out / "backbone").mkdir(exist_ok=True)
"""

SETTINGS = """
import sys
print("settings for", *sys.argv[1:], flush=True)
raise SystemExit(2 if "refused" in sys.argv[1] else 0)
"""

FINGERPRINT = """
import pathlib, sys
from components.methods import METHODS
out = pathlib.Path(sys.argv[-1])
(out / "pretrain").mkdir(parents=True)
for path in pathlib.Path("components/stages").glob("*.py"):
    for name in [f"pretrain/{method}" for method in METHODS] if path.stem == "pretrain" else [path.stem]:
        (out / f"{name}.json").write_text(path.read_text())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with prefect_test_harness(server_startup_timeout=PATIENCE):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of flows, dvc.yaml and params.yaml, with stages that only write a few files."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", "prefect.toml"):
        shutil.copy(ROOT / name, root)
    for name in ("methods", "stages", "commands", "reporting"):
        (root / "components" / name).mkdir(parents=True)
        (root / "components" / name / "__init__.py").touch()
    (root / "components" / "__init__.py").touch()
    for name in ("config.py", *(f"reporting/{part}.py" for part in ("results", "formats", "method_summary"))):
        shutil.copy(ROOT / "components" / name, root / "components" / name)
    (root / "components" / "commands" / "check.py").write_text(STAGE)
    (root / "components" / "commands" / "settings.py").write_text(SETTINGS)
    (root / "components" / "methods" / "__init__.py").write_text(f"METHODS = dict.fromkeys({list(METHODS)})")
    for path in (ROOT / "components" / "stages").glob("*.py"):
        (root / "components" / "stages" / path.name).write_text(STAGE if path.stem != "__init__" else "")
    (root / "components" / "stages" / "fingerprint.py").write_text(FINGERPRINT)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    return root


def run(project: Path, server: str, name: str, *args: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PREFECT_API_URL": server, "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, str(project / "flows" / f"{name}.py"), *args],
        cwd="/",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_a_method_that_is_not_in_the_list(project: Path, server: str) -> None:
    done = run(project, server, "pretrain", "--method", "mocoscriptstyle", "--processes", "2")
    assert done.returncode == 0, done.stdout
    assert f"processes: 2 {sys.executable}" in done.stdout
    assert "mocoscriptstyle is now among the methods" in done.stdout
    assert (project / "artifacts" / "pretrain" / "mocoscriptstyle").is_dir()
    assert "Running stage 'evaluate@mocoscriptstyle'" in done.stdout
    assert f"backbone: {project}/artifacts/pretrain/mocoscriptstyle/backbone" in done.stdout
    with get_client(sync_client=True) as client:
        found = client._client.post("/artifacts/latest/filter", json={}).json()
    shown = {artifact["key"]: artifact["data"] for artifact in found}
    assert shown["pretrain-mocoscriptstyle"] == 50
    assert '"kNN accuracy": "0.412"' in shown["pretrain-mocoscriptstyle-features"]
    again = run(project, server, "pretrain", "--method", "mocoscriptstyle")
    assert again.returncode == 0, again.stdout
    assert "pretrain@mocoscriptstyle is up to date, so nothing ran" in again.stdout
    assert "processes:" not in again.stdout


def test_the_whole_pipeline_and_its_artifact(project: Path, server: str) -> None:
    done = run(project, server, "pipeline", "--photos", "my photos", "--minutes", "5")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("settings for /my photos --minutes 5\n")  # where the command was started
    assert "Running stage 'report'" in done.stdout
    with get_client(sync_client=True) as client:
        shown = client._client.post("/artifacts/latest/filter", json={}).json()
    assert [artifact["data"].splitlines()[0] for artifact in shown if artifact["key"] == "report"] == [
        "| method | knn |"
    ]


def test_photos_that_are_refused_start_no_flow(project: Path, server: str) -> None:
    done = run(project, server, "pipeline", "--photos", "refused")
    assert (done.returncode, done.stdout) == (2, "settings for /refused\n")
    alone = run(project, server, "pipeline", "--minutes", "5")
    assert alone.returncode == 2
    assert "--minutes needs --photos" in alone.stdout


def test_a_stage_that_fails_says_why(project: Path, server: str) -> None:
    params = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(params.replace("answer:\n  pictures: ", "answer:\n  pictures: 1"))
    (project / "broken").touch()
    done = run(project, server, "answer")
    (project / "broken").unlink()
    assert done.returncode == 1
    assert done.stdout.count("this is why") == 1
    assert done.stdout.endswith("The cause is in the lines above.\n")
    assert "Traceback" not in done.stdout


@pytest.mark.skipif(is_prefect_server(SERVER), reason="a Prefect server is running on this machine")
def test_ctrl_c_ends_a_flow_at_once_with_a_message(project: Path, tmp_path: Path) -> None:
    """A terminal sends the signal to the whole process group, also to the server that the flow has started."""
    (project / "slow").touch()
    (project / "components" / "stages" / "pretrain.py").write_text(f"{STAGE}# changed, so that it has to run\n")
    env = {**os.environ, "PREFECT_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    env["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = str(PATIENCE)
    command = [sys.executable, str(project / "flows" / "pretrain.py"), "--method", "moco"]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as flow:
        assert flow.stdout is not None
        lines = []
        for line in flow.stdout:
            lines.append(line)
            if "processes:" in line:
                break
        else:
            pytest.fail("".join(lines))
        os.killpg(flow.pid, signal.SIGINT)
        rest, _ = flow.communicate(timeout=PATIENCE)  # half of what the stage would take
    (project / "slow").unlink()
    assert flow.returncode == 130, rest
    assert rest.endswith("Stopped. The same command continues from there.\n")
    assert "Traceback" not in rest
    deadline = time.monotonic() + PATIENCE  # the server needs time to end
    while left := [p for p in psutil.process_iter() if _is_in(p, flow.pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _is_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
