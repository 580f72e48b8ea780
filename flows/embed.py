"""Compute a vector for each photo, to search by.

Runs the stage `embed`, and before it whatever it needs that is not up to date.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import exclusive, script, stage  # isort: split

from prefect import State, flow


@flow
def embed() -> State[None] | None:
    """Compute a vector for each photo, to search by."""
    return exclusive.run_exclusive(lambda: stage.repro("embed"))


if __name__ == "__main__":
    script.parser(__doc__).parse_args()
    raise SystemExit(script.launch(embed))
