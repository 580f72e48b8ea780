"""Train a backbone without labels, with any method of components.methods, and evaluate it.

Runs the stages `pretrain@METHOD` and `evaluate@METHOD`, and before them whatever they need that is not up to date. A
method that is not in the list `methods` of params.yaml is added there, so that it also appears in the report.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import environment, exclusive, method_list, script, stage  # isort: split

from prefect import State, flow

from components.reporting.method_summary import method_summary


def outcome(method: str, artifacts: Path) -> list[str]:
    """Returns lines that say where the backbone is, its accuracies, and the next command."""
    lines = method_summary(artifacts, method).splitlines()
    return [*lines, "Next: selfsight report draws the page from what there is; dvc repro first runs what is missing."]


@flow
def pretrain(
    method: method_list.Method = method_list.NAMES[0], processes: stage.Processes = stage.DEFAULT_PROCESSES
) -> State[None] | None:
    """Train a backbone without labels, and evaluate it.

    Args:
        method: the method; added to params.yaml if it is not in its list of methods
        processes: how many processes train, one for each GPU
    """

    def work() -> None:
        with method_list.listed(method, stage.logger().info):
            stage.repro(f"pretrain@{method}", processes)
        stage.repro(f"evaluate@{method}", processes)
        for line in outcome(method, environment.ROOT / "artifacts"):
            stage.logger().info("%s", line)

    return exclusive.run_exclusive(work)


if __name__ == "__main__":
    parser = script.parser(__doc__)
    parser.add_argument(
        "--method",
        required=True,
        type=method_list.method_name,
        metavar="NAME",
        help=f"one of {', '.join(method_list.NAMES)}",
    )
    script.add_processes(parser)
    args = parser.parse_args()
    raise SystemExit(script.launch(lambda: pretrain(args.method, args.processes)))
