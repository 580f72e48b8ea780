"""Ask the language model questions about test photos.

Runs the stage `answer`, and before it whatever it needs that is not up to date.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import exclusive, script, stage  # isort: split

from prefect import State, flow


@flow
def answer() -> State[None] | None:
    """Ask the language model questions about test photos."""
    return exclusive.run_exclusive(lambda: stage.repro("answer"))


if __name__ == "__main__":
    script.parser(__doc__).parse_args()
    raise SystemExit(script.launch(answer))
