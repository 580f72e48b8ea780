"""Match photos and words, on a frozen backbone.

Runs the stage `words`, and before it whatever it needs that is not up to date.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import exclusive, script, stage  # isort: split

from prefect import State, flow


@flow
def words() -> State[None] | None:
    """Match photos and words, on a frozen backbone."""
    return exclusive.run_exclusive(lambda: stage.repro("words"))


if __name__ == "__main__":
    script.parser(__doc__).parse_args()
    raise SystemExit(script.launch(words))
