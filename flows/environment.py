"""A flow behaves the same wherever it is started from. Imported before prefect, which reads its settings once.

Prefect looks for prefect.toml, and DVC for dvc.yaml, in the current folder and nowhere else.
"""

import os
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = "http://127.0.0.1:4200/api"
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def answers(url: str) -> bool:
    """Whether a Prefect server on this machine answers at `url`."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business on loopback
    try:
        with direct.open(f"{url.rstrip('/')}/health", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def settle() -> None:
    """Go to the root, keep telemetry off, and use the local server if there is one; what is already set, stays."""
    os.chdir(ROOT)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ and answers(SERVER):
        os.environ["PREFECT_API_URL"] = SERVER


settle()
