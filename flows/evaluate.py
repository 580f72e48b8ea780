"""Measure a backbone: what its features are worth as they are.

Runs the stage `evaluate@METHOD`, and before it whatever it needs that is not up to date, pretraining included.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, python sees flows/ and not the root

from flows import script, stage, tracked, turns  # isort: split

from prefect import State, flow


@flow
def evaluate(method: tracked.Method = tracked.NAMES[0]) -> State[None] | None:
    """Measure what the features of a backbone are worth as they are.

    Args:
        method: whose backbone
    """

    def work() -> None:
        tracked.track(method, stage.logger().info)
        stage.repro(f"evaluate@{method}")

    return turns.take(work)


if __name__ == "__main__":
    parser = script.parser(__doc__)
    parser.add_argument("--method", required=True, choices=tracked.NAMES, help="whose backbone")
    given = parser.parse_args()
    raise SystemExit(script.launch(lambda: evaluate(given.method)))
