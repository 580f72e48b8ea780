"""Prepares the environment of a flow, so that it behaves the same in whatever folder it is started.

It is imported before prefect, which reads its settings once, when it is imported. Prefect looks for prefect.toml, and
DVC for dvc.yaml, only in the current folder.
"""

import http.client
import json
import os
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STARTED_IN = Path.cwd()  # before the change to ROOT
SERVER = "http://127.0.0.1:4200/api"
REPLY = 1.0  # seconds in which a server on this machine answers
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def is_prefect_server(url: str) -> bool:
    """Returns True if a Prefect server of the installed major version answers at `url`, not another program."""
    try:
        server = _get_json(f"{url.rstrip('/')}/admin/version")
        return _get_json(f"{url.rstrip('/')}/health") is True and _major(server) == _major(version("prefect"))
    except (OSError, ValueError, http.client.HTTPException):  # no answer, or none in time, not JSON, not HTTP
        return False


def _get_json(url: str) -> Any:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for this machine itself
    with direct.open(url, timeout=REPLY) as response:
        return json.loads(response.read(1000))


def _major(text: Any) -> str:
    return str(text).partition(".")[0]


def prepare_environment() -> None:
    """Change to the root folder, turn telemetry off, and use the local server if there is one.

    Environment variables that are already set are kept.
    """
    os.chdir(ROOT)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ and is_prefect_server(SERVER):
        os.environ["PREFECT_API_URL"] = SERVER


prepare_environment()
