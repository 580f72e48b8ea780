import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import environment


def test_from_any_folder_to_the_root_with_telemetry_off(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(environment.ROOT)!r}); import flows.environment, os, pathlib;"
        "print(pathlib.Path.cwd()); [print(name, os.environ[name]) for name in flows.environment.SETTINGS]"
    )
    bare = {name: value for name, value in os.environ.items() if name not in environment.SETTINGS}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=bare, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[0] == str(environment.ROOT)
    assert said[1:] == [f"{name} {value}" for name, value in environment.SETTINGS.items()]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "7")
    monkeypatch.setattr(environment, "answers", lambda url: True)
    environment.settle()
    assert os.environ["PREFECT_API_URL"] == "http://elsewhere/api"
    assert os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] == "7"


@pytest.mark.parametrize("up", [True, False])
def test_a_running_local_server_is_used(monkeypatch: pytest.MonkeyPatch, up: bool) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "to be restored")
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setattr(environment, "answers", lambda url: up)
    environment.settle()
    assert os.environ.pop("PREFECT_API_URL", None) == (environment.SERVER if up else None)


def test_no_server_is_not_an_error() -> None:
    assert not environment.answers("http://127.0.0.1:9/api")
