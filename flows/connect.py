"""Give a language model eyes.

Runs the stage `connect`, and before it whatever it needs that is not up to date.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, python sees flows/ and not the root

from flows import script, stage, turns  # isort: split

from prefect import State, flow


@flow
def connect() -> State[None] | None:
    """Give a language model eyes."""
    return turns.take(lambda: stage.repro("connect"))


if __name__ == "__main__":
    script.parser(__doc__).parse_args()
    raise SystemExit(script.launch(connect))
