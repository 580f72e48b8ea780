"""Runs a script in a fresh process that cannot import this project, as someone who only has the saved files would.

As a program: `python tests/stock_process.py SCRIPT ARGUMENTS…`. SELFSIGHT_TEST_NO_TORCHVISION=1 hides torchvision too.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(script: Path, *args: str | Path, torchvision: bool = True) -> Any:
    """Returns the JSON that the script printed last. Its working directory is its first argument."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["SELFSIGHT_TEST_NO_TORCHVISION"] = "0" if torchvision else "1"
    command = [sys.executable, __file__, str(script), *map(str, args)]
    done = subprocess.run(command, env=env, cwd=args[0], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class _HideProject:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("components", "flows", "tests"):
            raise ModuleNotFoundError(f"{name} belongs to the project")


def _complete_torchvision() -> None:
    """A CPU build of torch beside the registry's torchvision lacks two operators that torchvision's import asks for."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        globals()["_library"] = library  # the operators exist as long as it does


if __name__ == "__main__":
    sys.meta_path.insert(0, _HideProject())  # type: ignore[arg-type]
    if os.environ["SELFSIGHT_TEST_NO_TORCHVISION"] == "1":
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    else:
        _complete_torchvision()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert not {"components", "flows", "tests"} & set(sys.modules)
