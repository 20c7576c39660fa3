"""Choose the flow that a run's process executes: one of this package, whatever the deployment on the server says.

More people can reach the server's API than may run code on a worker. A deployment names an entry point, pull steps and a storage block,
and Prefect executes or loads all of them.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from prefect.flows import Flow
from prefect.runner import runner
from prefect.states import Failed
from prefect.workers import process

from changepair.flows.running.exit_handling import tell
from changepair.flows.running.secrets import hide
from changepair.flows.schedule.flow import NAME, WATCHED, scheduled, watched
from changepair.flows.schedule.origins import OWN

FLOWS: dict[str, Flow[..., Any]] = {NAME: scheduled, WATCHED: watched}
ENTRYPOINTS = {name: f"changepair.flows.schedule.flow.{name}" for name in FLOWS}  # of all our deployments
ENTRYPOINT = "PREFECT__FLOW_ENTRYPOINT"  # environment variable of Prefect's engine: the flow to import instead of the deployment's code
RUN = "PREFECT__FLOW_RUN_ID"


def take_no_code_from_the_server() -> None:
    """Make the runs that this process starts ignore the entry points, pull steps and storage of deployments.

    After a crash or a cancellation, Prefect's worker and runner load the flow in their own process to call its hooks. Our flows have no
    hooks.
    """
    os.environ[ENTRYPOINT] = f"{__name__}.chosen"
    for module in (process, runner):
        setattr(module, "load_flow_from_flow_run", _without_hooks)  # noqa: B010 - Prefect's own name, in each module that imports it


def __getattr__(name: str) -> Flow[..., Any]:
    """Return the flow of this process's run as the attribute `chosen`. End an invalid run as Failed with one line, and raise Abort."""
    if name != "chosen":
        raise AttributeError(name)
    os.environ.pop(ENTRYPOINT, None)  # child processes must not inherit it
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(os.environ[RUN]))
        deployed = client.read_deployment(run.deployment_id) if run.deployment_id is not None else None
        entrypoint = None if deployed is None else deployed.entrypoint
        flow = next((FLOWS[own] for own, of in ENTRYPOINTS.items() if of == entrypoint), None)
        unknown = [] if flow is None else sorted(run.parameters.keys() - flow.parameters.properties.keys())
        if flow is not None and not unknown:
            return flow
        wrong = f"parameters of the run: {hide(', '.join(unknown))}: unknown; only {OWN} can be set for one run"
        if flow is None:
            what = entrypoint or "a run without a deployment"
            wrong = f"{what}: not a flow of changepair; this worker only runs deployments of `changepair deploy`"
        client.set_flow_run_state(run.id, Failed(message=wrong), force=True)
    tell(f"{run.name}: {wrong}")
    raise Abort


async def _without_hooks(_run: FlowRun, **_options: Any) -> Flow[..., Any]:
    return scheduled
