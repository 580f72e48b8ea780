"""Offer the pipeline and pretraining in the Prefect UI: to be looked at, scheduled and started from there.

Needs a server: `prefect server start`, in another terminal. Runs one at a time, for as long as this script runs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, python sees flows/ and not the root

from flows import environment, script  # isort: split

from prefect import get_client
from prefect import serve as serve_all
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Schedule
from prefect.settings import get_current_settings

from flows.pipeline import pipeline
from flows.pretrain import pretrain


def deployments(schedule: Schedule | None) -> list[RunnerDeployment]:
    """What the UI offers; only the pipeline is ever scheduled."""
    return [
        RunnerDeployment.from_flow(pipeline, "pipeline", schedule=schedule, description=pipeline.__doc__),
        RunnerDeployment.from_flow(pretrain, "pretrain", description=pretrain.__doc__),
    ]


def reachable() -> str | None:
    """The address of a server that answers. None if there is none: Prefect's own would end with us, and has no UI."""
    url = get_current_settings().api.url
    if url is None:
        return None
    with get_client(sync_client=True) as client:
        return None if client.api_healthcheck() else url


def serve(schedule: Schedule | None) -> int:
    """Serve until interrupted. The exit code: 2 if there is no server."""
    if reachable() is None:
        url = get_current_settings().api.url or environment.SERVER
        print(
            f"No Prefect server answers at {url}. Start one in another terminal and leave it running:\n"
            f"  {Path(sys.executable).parent / 'prefect'} server start",
            file=sys.stderr,
        )
        return 2
    # Stopping pauses the schedules and starting resumes them: nights that nobody served do not queue up as late runs.
    serve_all(*deployments(schedule), limit=1, pause_on_shutdown=True)
    return 0


if __name__ == "__main__":
    parser = script.parser(__doc__)
    parser.add_argument("--cron", metavar="WHEN", help='when the pipeline runs, such as "0 3 * * *": three at night')
    parser.add_argument(
        "--timezone", default="UTC", metavar="ZONE", help="of --cron, such as Europe/Zurich; UTC if not said"
    )
    given = parser.parse_args()
    try:
        when = Cron(given.cron, timezone=given.timezone) if given.cron else None
    except ValueError as error:
        parser.error(f"--cron {given.cron!r}: {error}")
    raise SystemExit(serve(when))
