"""Read the pictures, check them, and pack them.

Runs the stage `prepare`, and before it whatever it needs that is not up to date.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, python sees flows/ and not the root

from flows import script, stage, turns  # isort: split

from prefect import State, flow


@flow
def prepare() -> State[None] | None:
    """Read the pictures, check them, and pack them."""
    return turns.take(lambda: stage.repro("prepare"))


if __name__ == "__main__":
    script.parser(__doc__).parse_args()
    raise SystemExit(script.launch(prepare))
