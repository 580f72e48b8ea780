"""Offer the pipeline and pretraining in the Prefect UI: to be looked at, scheduled and started from there.

Needs a server: `prefect server start`, in another terminal. Runs one at a time, for as long as this script runs.
"""

import os
import sys
import uuid
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, python sees flows/ and not the root

from flows import environment, script  # isort: split

import httpx
from prefect import get_client
from prefect import serve as serve_all
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Schedule
from prefect.settings import get_current_settings
from prefect.states import Crashed

from flows.pipeline import pipeline
from flows.pretrain import pretrain
from flows.process import kill_tree

MARK = "SELFSIGHT_SERVE"  # as in flows/process.py, for all that is ever served


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
    offered = deployments(schedule)
    mark = os.environ[MARK] = uuid.uuid4().hex
    try:
        # Stopping pauses the schedules, starting resumes them: nights when nobody serves do not pile up as late runs.
        serve_all(*offered, limit=1, pause_on_shutdown=True)
    finally:  # Prefect kills the flow that runs now at once: it could neither end what it started nor say that it ended
        kill_tree(mark)
        with suppress(httpx.HTTPError):  # the server may have stopped before us
            abandon([deployment.name for deployment in offered])
    return 0


def abandon(names: list[str]) -> None:
    """Say that the runs of these deployments have ended, which would else be running for ever."""
    working = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}})
    ours = DeploymentFilter.model_validate({"name": {"any_": names}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=working, deployment_filter=ours):
            client.set_flow_run_state(run.id, Crashed(message="flows/serve.py was stopped."), force=True)


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
