"""From a folder of pictures to a report: every stage, in order, each if DVC finds that it has something to do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, python sees flows/ and not the root

from flows import script, stage, tracked, turns  # isort: split

from prefect import State, flow

from flows.report import publish


def targets(methods: list[str]) -> list[str]:
    """The stages in an order in which each finds what it needs. A method is measured as soon as it is trained."""
    trained = [f"{word}@{method}" for method in methods for word in ("pretrain", "evaluate")]
    return ["fingerprint", "prepare", *trained, "adapt", "connect", "answer", "report"]


@flow
def pipeline(processes: stage.Processes = stage.DEFAULT_PROCESSES) -> State[None] | None:
    """From a folder of pictures to a report.

    Args:
        processes: how many processes train, one for each GPU
    """

    def work() -> None:
        stage.check()
        for target in targets(tracked.tracked()):
            stage.repro(target, processes, single=True)
        publish()

    return turns.take(work)


if __name__ == "__main__":
    parser = script.parser(__doc__)
    script.add_processes(parser)
    given = parser.parse_args()
    raise SystemExit(script.launch(lambda: pipeline(given.processes)))
