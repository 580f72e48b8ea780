"""What a run needs only until it is finished lies outside of what DVC tracks, for DVC empties that before a stage runs.

A folder is named by a fingerprint of everything that decides the result, so that the same run finds its state again
and another one starts afresh.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from components.source_files import digests

SCRATCH = "SELFSIGHT_SCRATCH"


def scratch(stage: str, *ingredients: object, modules: Iterable[str] = ()) -> Path:
    """Returns a folder for `stage`: the same one exactly if its code and the ingredients are the same.

    ingredients: JSON-serializable; modules: further modules that the stage runs, such as its method's.
    """
    # half a run by the old loss and half by the new one would be neither
    code = digests(f"components.stages.{stage}", *modules)
    key = json.dumps([ingredients, code], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = Path(os.environ.get(SCRATCH, ".scratch")).resolve() / stage / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
