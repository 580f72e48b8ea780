import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from flows import environment
from tests.tolerances import PATIENCE


def test_a_flow_runs_in_the_root_folder_with_telemetry_off(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(environment.ROOT)!r}); import flows.environment, os, pathlib;"
        "print(pathlib.Path.cwd()); [print(name, os.environ[name]) for name in flows.environment.SETTINGS]"
    )
    bare = {name: value for name, value in os.environ.items() if name not in environment.SETTINGS}
    lines = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=bare, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[0] == str(environment.ROOT)
    assert lines[1:] == [f"{name} {value}" for name, value in environment.SETTINGS.items()]


def test_variables_that_the_user_has_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "7")
    monkeypatch.setattr(environment, "is_prefect_server", lambda url: True)
    environment.prepare_environment()
    assert os.environ["PREFECT_API_URL"] == "http://elsewhere/api"
    assert os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] == "7"


@pytest.mark.parametrize("up", [True, False])
def test_a_running_local_server_is_used(monkeypatch: pytest.MonkeyPatch, up: bool) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "to be restored")
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setattr(environment, "is_prefect_server", lambda url: up)
    environment.prepare_environment()
    assert os.environ.pop("PREFECT_API_URL", None) == (environment.SERVER if up else None)


def test_no_server_is_not_an_error() -> None:
    assert not environment.is_prefect_server("http://127.0.0.1:9/api")


class Answer(BaseHTTPRequestHandler):
    """Answers as one of several programs that may listen on the port of a Prefect server."""

    server: "Program"

    def do_GET(self) -> None:
        body = self.server.answers.get(self.path, self.server.answers.get("*"))
        if body == "hang":
            self.server.finished.wait(PATIENCE)
        elif body != "close":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(str(body).encode())

    def log_message(self, *_: object) -> None:
        pass


class Program(ThreadingHTTPServer):
    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers, self.finished = answers, threading.Event()


PREFECT = json.dumps(version("prefect"))


@pytest.mark.parametrize(
    ("answers", "is_server"),
    [
        ({"/api/health": "true", "/api/admin/version": PREFECT}, True),
        ({"/api/health": "true", "/api/admin/version": '"2.20.1"'}, False),
        ({"/api/health": "false", "/api/admin/version": PREFECT}, False),
        ({"*": "<!doctype html><title>Another program</title>"}, False),
        ({"*": '{"status": "ok"}'}, False),
        ({"*": "true"}, False),
        ({"*": "close"}, False),
        ({"*": "hang"}, False),
    ],
    ids=["Prefect", "Prefect 2", "unhealthy", "HTML", "other JSON", "always true", "closes", "hangs"],
)
def test_only_a_prefect_server_counts_as_one(
    answers: dict[str, str], is_server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "hang" not in answers.values():
        monkeypatch.setattr(environment, "REPLY", PATIENCE)  # only what never answers is not waited for
    with Program(answers) as program:
        thread = threading.Thread(target=program.serve_forever)
        thread.start()
        try:
            assert environment.is_prefect_server(f"http://127.0.0.1:{program.server_port}/api") is is_server
        finally:
            program.finished.set()
            program.shutdown()
            thread.join()
