"""Offer the pipeline and pretraining in the Prefect UI, where they can be watched, scheduled and started.

It needs a server: run `prefect server start` in another terminal. Flows run one at a time, while this script runs.
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

MARK = "SELFSIGHT_SERVE"  # as in flows/process.py, for all flows that this script runs


def deployments(schedule: Schedule | None) -> list[RunnerDeployment]:
    """Returns what the UI offers. `schedule` is that of the pipeline; pretraining has none."""
    return [
        RunnerDeployment.from_flow(pipeline, "pipeline", schedule=schedule, description=pipeline.__doc__),
        RunnerDeployment.from_flow(pretrain, "pretrain", description=pretrain.__doc__),
    ]


def reachable() -> str | None:
    """Returns the address of the Prefect server, or None if none answers.

    The server that a flow starts for itself is not enough: it ends with this script and has no UI.
    """
    url = get_current_settings().api.url
    if url is None:
        return None
    with get_client(sync_client=True) as client:
        return None if client.api_healthcheck() else url


def serve(schedule: Schedule | None) -> int:
    """Serve until interrupted. Returns the exit code: 0, or 2 if there is no server."""
    if reachable() is None:
        url = get_current_settings().api.url or environment.SERVER
        print(
            f"No Prefect server answers at {url}. Start one in another terminal and leave it running:\n"
            f"  {Path(sys.executable).parent / 'prefect'} server start",
            file=sys.stderr,
        )
        return 2
    served = deployments(schedule)
    mark = os.environ[MARK] = uuid.uuid4().hex
    try:
        # Schedules are paused while this script does not run, so that the nights in between do not become late runs.
        serve_all(*served, limit=1, pause_on_shutdown=True)
    finally:  # Prefect kills the running flow at once, so the flow can neither end its processes nor report its end
        kill_tree(mark)
        with suppress(httpx.HTTPError):  # the server may have stopped before this script
            mark_crashed([deployment.name for deployment in served])
    return 0


def mark_crashed(names: list[str]) -> None:
    """Set unfinished runs of these deployments to Crashed in the UI, where they would otherwise run for ever."""
    unfinished = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}})
    deployment = DeploymentFilter.model_validate({"name": {"any_": names}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=unfinished, deployment_filter=deployment):
            client.set_flow_run_state(run.id, Crashed(message="flows/serve.py was stopped."), force=True)


if __name__ == "__main__":
    parser = script.parser(__doc__)
    parser.add_argument("--cron", metavar="WHEN", help='when the pipeline runs; "0 3 * * *": every night at three')
    parser.add_argument(
        "--timezone", default="UTC", metavar="ZONE", help="time zone of --cron, such as Europe/Zurich (default: UTC)"
    )
    args = parser.parse_args()
    try:
        schedule = Cron(args.cron, timezone=args.timezone) if args.cron else None
    except ValueError as error:
        parser.error(f"--cron {args.cron!r}: {error}")
    raise SystemExit(serve(schedule))
