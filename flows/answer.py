"""Ask the language model about pictures it has not seen.

Runs the stage `answer`, and before it whatever it needs that is not up to date.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, python sees flows/ and not the root

from flows import script, stage, turns  # isort: split

from prefect import State, flow


@flow
def answer() -> State[None] | None:
    """Ask the language model about pictures it has not seen."""
    return turns.take(lambda: stage.repro("answer"))


if __name__ == "__main__":
    script.parser(__doc__).parse_args()
    raise SystemExit(script.launch(answer))
