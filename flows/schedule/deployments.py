"""Deploy the enabled pipelines of pipelines.yaml to the Prefect server of PREFECT_API_URL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import parameter_schema

from changepair.flows.running.api import logged_in, named_server
from changepair.flows.running.entry import LIMIT
from changepair.flows.running.exit_handling import tell
from changepair.flows.runs.states import RETRAINING, resource_of
from changepair.flows.schedule.entry import ENTRYPOINTS, FLOWS, take_no_code_from_the_server
from changepair.flows.schedule.flow import NAME, WATCHED
from changepair.flows.schedule.origins import REPOSITORIES, refuse_secret
from changepair.flows.schedule.work import stop_runs
from changepair.flows.settings.pipelines import Pipelines, enabled_pipeline, read_pipelines
from changepair.flows.settings.runs import Schedule
from changepair.tasks.common.errors import BadInput

TAG = "changepair"
PAGE = 200  # the server's limit of deployments per request
JOB: dict[str, Any] = {
    "job_configuration": {"command": None, "labels": {}, "name": "{{ name }}", "stream_output": True, "working_dir": None},
    "variables": {"type": "object", "properties": {"name": {"type": "string", "description": "Name of the run's process."}}},
}
"""Job template of a work pool. Prefect's default template lets every run choose its command and environment, and so execute any code."""
STRATEGIES = {"wait": ConcurrencyLimitStrategy.ENQUEUE, "skip": ConcurrencyLimitStrategy.CANCEL_NEW}


@dataclass(frozen=True)
class Wanted:
    """A deployment that pipelines.yaml defines."""

    name: str  # of the pipeline
    schedule: Schedule | None
    parameters: dict[str, Any]
    tags: tuple[str, ...]
    pool: str | None
    overlap: str
    flow: str = NAME  # NAME retrains, WATCHED scores new pictures
    when_asked: bool = False  # whether events of the watched production line trigger it

    def built(self, deployed: DeploymentResponse | None) -> RunnerDeployment:
        """Build the deployment for Prefect. It runs once at a time; a second run waits or is cancelled.

        If the server already has the same interval, its start time stays unchanged.
        """
        when: list[Any] = []
        own = self.schedule
        if own is not None and own.cron is not None:
            when = [CronSchedule(cron=own.cron, timezone=own.timezone)]
        elif own is not None and own.interval is not None:
            when = [IntervalSchedule(interval=own.interval, timezone=own.timezone)]
            for one in deployed.schedules if deployed is not None else ():
                if _times([one]) == _times([DeploymentScheduleCreate(schedule=when[0])]):
                    when = [one.schedule]
        trigger = DeploymentEventTrigger(
            name=f"{self.name}: retrain on drift or new labels",
            expect=set(RETRAINING),
            match={"prefect.resource.id": resource_of(self.name)},
        )
        about = "Retrains" if self.flow == NAME else "Scores new pictures of"
        deployment: RunnerDeployment = FLOWS[self.flow].to_deployment(  # type: ignore[assignment]
            self.name,
            schedules=when or None,
            parameters=self.parameters,
            tags=list(self.tags),
            work_pool_name=self.pool,
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=STRATEGIES[self.overlap]),
            description=f"{about} {self.name} in a clean clone of {self.parameters['repository']}",
            triggers=[trigger] if self.when_asked else [],
            entrypoint_type=EntrypointType.MODULE_PATH,  # workers have the package installed, and every run clones its repository
        )
        return deployment


def wanted(read: Pipelines, repository: str) -> list[Wanted]:
    """List the deployments of all enabled pipelines."""
    deployments = []
    for name in read.enabled:
        runs, pipeline = read.runs_of(name), read.pipelines[name]
        keys = ("revision", "results", "workspaces", "remote", "remote_timeout", "overlap")
        parameters = {"pipeline": name, "repository": repository, **{key: getattr(runs, key) for key in keys}}
        tags = tuple(dict.fromkeys((TAG, *runs.tags)))
        watching = None if pipeline.watch is None else pipeline.watch.schedule
        deployments.append(Wanted(name, pipeline.schedule, parameters, tags, runs.pool, runs.overlap, when_asked=watching is not None))
        if watching is not None:
            deployments.append(Wanted(name, watching, parameters, tags, runs.pool, "skip", flow=WATCHED))
    return deployments


def deploy() -> list[str]:
    """Sync this repository's deployments on the server with pipelines.yaml; return one line per deployment. Raises BadInput."""
    read = read_pipelines()
    for name in read.enabled:
        enabled_pipeline(name)  # raises BadInput if it cannot run
    repository = repository_of(read)
    items = wanted(read, repository)
    with logged_in(*named_server()), get_client(sync_client=True) as client:
        before = [_deployed(client, item, repository) for item in items]
        lines = [*_pool(client, read, repository), *_limit(client, read)]
        lines += [_apply(client, item, deployed) for item, deployed in zip(items, before, strict=True)]
        lines += _remove(client, repository, {(ENTRYPOINTS[item.flow], item.name) for item in items})
    return lines


def serve(say: Callable[[str], None]) -> None:
    """Deploy, then execute due runs in processes on this machine until stopped. Raises BadInput."""
    for line in deploy():
        say(line)
    read = read_pipelines()
    repository = repository_of(read)
    os.environ.setdefault(REPOSITORIES, repository)  # the processes of runs read it
    take_no_code_from_the_server()
    with logged_in(*named_server()):
        runner = _Runner(name=TAG, pause_on_shutdown=False)  # after a downtime, one run makes up for all missed ones
        with get_client(sync_client=True) as client:
            for item in wanted(read, repository):
                runner.look_after(client.read_deployment_by_name(f"{item.flow}/{item.name}").id, item.name)
        signal.signal(signal.SIGINT, runner.handle_sigterm)  # asyncio keeps an existing handler
        asyncio.run(runner.start())


class _Runner(Runner):
    """Prefect runner that stops its runs on SIGTERM or Ctrl-C, then ends. Prefect's own runner does not stop them, and prints a warning."""

    def look_after(self, deployment: UUID, name: str) -> None:
        """Execute the due runs of an existing deployment. `add_deployment` would deploy it again and restart its interval."""
        self._deployment_registry.register_deployment(deployment, name)

    def handle_sigterm(self, *_args: Any, **_kwargs: Any) -> None:
        stop_runs(psutil.Process())
        tell("stopped")
        sys.exit(0)


def repository_of(read: Pipelines) -> str:
    """Return the repository that runs clone: the setting, else this checkout's `origin`, else this checkout.

    Raises BadInput if this folder is not a checkout, or the address contains a password.
    """
    repository = read.runs.repository
    if repository is None:
        repository = _git("remote", "get-url", "origin") or _git("rev-parse", "--show-toplevel")
    if repository is None:
        raise BadInput("runs.repository: this folder is not a Git checkout; set in pipelines.yaml the repository that runs clone")
    refuse_secret(repository)
    place = Path(repository).expanduser()
    return str(place.resolve()) if "://" not in repository and place.is_dir() else repository


def _deployed(client: SyncPrefectClient, item: Wanted, repository: str) -> DeploymentResponse | None:
    """Read a deployment from the server; None if it does not exist. Raises BadInput if it belongs to another repository."""
    name = f"{item.flow}/{item.name}"
    try:
        deployed = client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None
    owner = deployed.parameters.get("repository")
    if owner != repository:
        raise BadInput(
            f"pipelines.{item.name}: a deployment with this name exists for {owner or 'another project'}, not for {repository}; "
            f"rename the pipeline, or delete the deployment: `prefect deployment delete {name}`"
        )
    return deployed


def _apply(client: SyncPrefectClient, item: Wanted, deployed: DeploymentResponse | None) -> str:
    about = f"{item.name}{'' if item.flow == NAME else ', new pictures'}, {item.schedule or 'no schedule'}"
    built, schema = item.built(deployed), _schema(item)
    if deployed is not None and _is_as(deployed, built, schema):
        owned = client.read_resource_related_automations(f"prefect.deployment.{deployed.id}")
        if [_expected(one.trigger) for one in owned] == [_expected(one) for one in built.triggers]:
            return f"unchanged: {about}"
    made = client.create_deployment(  # also updates one; `built.apply()` would keep schedules that were removed
        flow_id=client.create_flow(FLOWS[item.flow]),
        name=item.name,
        schedules=cast(list[DeploymentScheduleCreate], built.schedules or []),
        parameters=built.parameters,
        tags=built.tags,
        work_pool_name=built.work_pool_name,
        entrypoint=built.entrypoint,
        concurrency_limit=built.concurrency_limit,
        concurrency_options=built.concurrency_options,
        parameter_openapi_schema=schema,
        enforce_parameter_schema=True,
        description=built.description,
    )
    client.delete_resource_owned_automations(f"prefect.deployment.{made}")
    for trigger in built.triggers:
        trigger.set_deployment_id(made)
        client.create_automation(trigger.as_automation())
    return f"{'updated' if deployed else 'created'}: {about}"


def _expected(trigger: Any) -> set[str]:
    """Return the events that a trigger expects."""
    return set(getattr(trigger, "expect", ()))


def _is_as(deployed: DeploymentResponse, built: RunnerDeployment, schema: dict[str, Any]) -> bool:
    same = ("parameters", "work_pool_name", "entrypoint", "concurrency_options")
    return (
        all(getattr(deployed, name) == getattr(built, name) for name in same)
        and _times(deployed.schedules) == _times(built.schedules or [])
        and set(deployed.tags or ()) == set(built.tags)
        and deployed.parameter_openapi_schema == schema
    )


def _schema(item: Wanted) -> dict[str, Any]:
    """Return the JSON Schema of a run's parameters. The server refuses unknown parameters, and values other than the deployment's."""
    schema: dict[str, Any] = json.loads(json.dumps(parameter_schema(FLOWS[item.flow]).model_dump(exclude_unset=True)))
    for name, value in item.parameters.items():
        schema["properties"][name] |= {"enum": [value], "default": value}
    return {**schema, "additionalProperties": False}


def _times(schedules: Sequence[Any]) -> list[Any]:
    """Return schedules for comparison, without the start times of their intervals."""
    return [schedule.schedule.model_dump(exclude={"anchor_date"}) for schedule in schedules]


def _remove(client: SyncPrefectClient, repository: str, named: set[tuple[str, str]]) -> Iterator[str]:
    """Remove the deployments of this repository that `named` does not list, by entry point and pipeline."""
    for deployed in of_this_project(client):
        ours = deployed.entrypoint in ENTRYPOINTS.values() and deployed.parameters.get("repository") == repository
        if ours and (deployed.entrypoint, deployed.name) not in named:
            client.delete_deployment(deployed.id)
            yield f"removed: {deployed.name}{', new pictures' if deployed.entrypoint == ENTRYPOINTS[WATCHED] else ''}"


def of_this_project(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """List every deployment on the server with changepair's tag, of any repository."""
    ours = DeploymentFilter.model_validate({"tags": {"all_": [TAG]}})
    deployments: list[DeploymentResponse] = []
    while page := client.read_deployments(deployment_filter=ours, limit=PAGE, offset=len(deployments)):
        deployments += page
    return deployments


def _pool(client: SyncPrefectClient, read: Pipelines, repository: str) -> Iterator[str]:
    name = read.runs.pool
    if name is None:
        return
    from prefect.workers.process import ProcessWorker

    try:
        if client.read_work_pool(name).base_job_template == ProcessWorker.get_default_base_job_template():
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=JOB))
            yield f"updated: work pool {name}; runs can no longer set their command and environment"
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=JOB))
        yield (
            f"created: work pool {name}; on each worker, set {REPOSITORIES} to the repositories whose code it may run, here {repository}, "
            f"and run `changepair work --pool {name}`"
        )


def _limit(client: SyncPrefectClient, read: Pipelines) -> Iterator[str]:
    count = read.runs.gpus
    try:
        if client.read_global_concurrency_limit_by_name(LIMIT).limit == count:
            return
        client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(limit=count))
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=count))
    yield f"GPU stages: {count} at a time"


def _git(*arguments: str) -> str | None:
    answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None if answer.returncode == 0 else None
