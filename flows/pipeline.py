"""From a folder of photos to a report: runs every stage in order, each only if DVC finds that it is not up to date."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's first path is flows/, not the root

from flows import exclusive, script, stage
from flows.environment import STARTED_IN  # isort: split

from prefect import State, flow

from components.config import methods
from flows.report import publish


def targets(methods: list[str]) -> list[str]:
    """Returns the stages in an order in which each finds its inputs. A method is evaluated as soon as it is trained."""
    method_stages = [f"{word}@{method}" for method in methods for word in ("pretrain", "evaluate")]
    return ["fingerprint", "prepare", *method_stages, "adapt", "embed", "words", "connect", "answer", "report"]


def choose_settings(photos: Path, minutes: str | None) -> None:
    """Run `selfsight settings` while no other flow runs, which would read the new file. Exits where it fails."""
    command = [sys.executable, "-m", "components.commands.settings", str(STARTED_IN / photos.expanduser())]
    command += ["--minutes", minutes] if minutes else []
    codes: list[int] = []
    exclusive.run_exclusive(lambda: codes.append(subprocess.call(command)))
    if codes[0]:
        raise SystemExit(codes[0])


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
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="FOLDER",
        help="choose settings for these photos and this machine, and write params.yaml, unless it is for them already",
    )
    parser.add_argument(
        "--minutes", metavar="N", help="with --photos: minutes a whole run may take (default: 30, or 60 with a GPU)"
    )
    args = parser.parse_args()
    if args.minutes and not args.photos:
        parser.error("--minutes needs --photos: without it, params.yaml says how long methods train")

    def run() -> object:
        if args.photos:
            choose_settings(args.photos, args.minutes)
        return pipeline(args.processes)

    raise SystemExit(script.launch(run))
