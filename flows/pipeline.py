"""From a folder of photos to a report: runs every stage in order, each only if DVC finds that it is not up to date."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import exclusive, script, stage  # isort: split

from prefect import State, flow

from components.config import methods
from flows.report import publish


def targets(methods: list[str]) -> list[str]:
    """Returns the stages in an order in which each finds its inputs. A method is evaluated as soon as it is trained."""
    trained = [f"{word}@{method}" for method in methods for word in ("pretrain", "evaluate")]
    return ["fingerprint", "prepare", *trained, "adapt", "connect", "answer", "report"]


@flow
def pipeline(processes: stage.Processes = stage.DEFAULT_PROCESSES) -> State[None] | None:
    """From a folder of photos to a report.

    Args:
        processes: how many processes train, one for each GPU
    """

    def work() -> None:
        stage.check()
        for target in targets(methods()):
            stage.repro(target, processes, single=True)
        publish()

    return exclusive.run_exclusive(work)


if __name__ == "__main__":
    parser = script.parser(__doc__)
    script.add_processes(parser)
    args = parser.parse_args()
    raise SystemExit(script.launch(lambda: pipeline(args.processes)))
