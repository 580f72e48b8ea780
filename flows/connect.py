"""Connect a frozen backbone to a language model.

Runs the stage `connect`, and before it whatever it needs that is not up to date.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import exclusive, script, stage  # isort: split

from prefect import State, flow


@flow
def connect() -> State[None] | None:
    """Connect a frozen backbone to a language model."""
    return exclusive.run_exclusive(lambda: stage.repro("connect"))


if __name__ == "__main__":
    script.parser(__doc__).parse_args()
    raise SystemExit(script.launch(connect))
