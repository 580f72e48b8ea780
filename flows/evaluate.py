"""Evaluate the frozen features of a backbone.

Runs the stage `evaluate@METHOD`, and before it whatever it needs that is not up to date, pretraining included.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import exclusive, method_list, script, stage  # isort: split

from prefect import State, flow


@flow
def evaluate(method: method_list.Method = method_list.NAMES[0]) -> State[None] | None:
    """Evaluate the frozen features of a backbone.

    Args:
        method: the method of the backbone
    """

    def work() -> None:
        with method_list.listed(method, stage.logger().info):
            stage.repro(f"evaluate@{method}")

    return exclusive.run_exclusive(work)


if __name__ == "__main__":
    parser = script.parser(__doc__)
    parser.add_argument(
        "--method", required=True, type=method_list.method_name, metavar="NAME", help="whose backbone is evaluated"
    )
    args = parser.parse_args()
    raise SystemExit(script.launch(lambda: evaluate(args.method)))
