import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.exceptions import CancelledRun
from prefect.schedules import Cron

from components.methods import METHODS
from flows import script, serve
from flows.environment import ROOT
from flows.process import CommandError

FLOWS = sorted(
    path.stem
    for path in (ROOT / "flows").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


@pytest.fixture(autouse=True)
def _signals():
    before = {sort: signal.getsignal(sort) for sort in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for sort, handler in before.items():
        signal.signal(sort, handler)


def fail(error: BaseException):
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        (lambda: None, 0, ""),
        (
            fail(CommandError(["dvc", "repro", "x"], 255, ["the reason"])),
            1,
            "x\nThe cause is in the lines above.\n",
        ),
        (fail(CancelledRun("canceled on request")), 1, "canceled on request"),
        (fail(ValueError("no such method")), 2, "no such method"),
        (fail(KeyboardInterrupt()), 130, ""),
        (fail(RuntimeError("Failed to reach API at http://x")), 2, "prefect server start"),
    ],
)
def test_exit_codes(run, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.launch(run) == code
    assert message in capsys.readouterr().err


def test_a_fault_of_our_own_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="ours"):
        script.launch(fail(RuntimeError("ours")))


def test_processes(capsys: pytest.CaptureFixture[str]) -> None:
    parser = script.parser("A flow.")
    script.add_processes(parser)
    assert parser.parse_args(["--processes", "2"]).processes == 2
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--processes", "0"])


def run_script(
    name: str, *args: str, cwd: Path, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "flows" / f"{name}.py"), *args],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["pretrain", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_an_unknown_method_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    done = run_script(name, "--method", "bogus", cwd=tmp_path)
    assert done.returncode == 2
    assert all(method in done.stderr for method in METHODS)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_says_what_it_does(name: str, tmp_path: Path) -> None:
    done = run_script(name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.slow
def test_serve_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    done = run_script("serve", cwd=tmp_path, env={"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert done.returncode == 2
    assert "prefect server start" in done.stderr


@pytest.mark.slow
def test_serve_refuses_what_is_no_time(tmp_path: Path) -> None:
    done = run_script("serve", "--cron", "at three", cwd=tmp_path)
    assert done.returncode == 2
    assert "at three" in done.stderr


def test_what_is_served() -> None:
    pipeline, pretrain = serve.deployments(Cron("0 3 * * *", timezone="UTC"))
    assert [d.schedule.cron for d in pipeline.schedules] == ["0 3 * * *"]
    assert not pretrain.schedules
    schema = pretrain._parameter_openapi_schema
    assert schema.properties["method"]["enum"] == list(METHODS)  # a dropdown
    assert schema.properties["processes"]["minimum"] == 1
