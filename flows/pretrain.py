"""Learn a backbone without labels, by any method that components.methods knows.

Runs the stage `pretrain@METHOD`, and before it whatever it needs that is not up to date. A method that params.yaml does
not name under `methods` is added there, so that it also appears in the report.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, python sees flows/ and not the root

from flows import script, stage, tracked, turns  # isort: split

from prefect import State, flow


@flow
def pretrain(
    method: tracked.Method = tracked.NAMES[0], processes: stage.Processes = stage.DEFAULT_PROCESSES
) -> State[None] | None:
    """Learn a backbone without labels.

    Args:
        method: how to learn; one that is new to params.yaml is added there
        processes: how many processes train, one for each GPU
    """

    def work() -> None:
        tracked.track(method, stage.logger().info)
        stage.repro(f"pretrain@{method}", processes)

    return turns.take(work)


if __name__ == "__main__":
    parser = script.parser(__doc__)
    parser.add_argument("--method", required=True, choices=tracked.NAMES, help="how to learn")
    script.add_processes(parser)
    given = parser.parse_args()
    raise SystemExit(script.launch(lambda: pretrain(given.method, given.processes)))
