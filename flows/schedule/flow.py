"""Define the deployed flows: retrain a pipeline or score new pictures in a clean clone, push the artifacts and commit the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed
from rich.console import Console

from changepair.flows.running.api import child, close_dead, link_child, one_api, parent, stoppable
from changepair.flows.running.exit_handling import log_in_lines
from changepair.flows.running.locks import Held, one_at_a_time
from changepair.flows.running.secrets import hide
from changepair.flows.runs.journal import now
from changepair.flows.runs.states import OF_AN_END, RunState, emit
from changepair.flows.schedule import workspace
from changepair.flows.schedule.origins import refuse_secret, refuse_unknown_code
from changepair.flows.schedule.workspace import Workspace
from changepair.flows.settings.pipelines import Name
from changepair.flows.settings.reader import parse
from changepair.flows.settings.runs import Overlap, Results, Runs
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.stopping import Stopped

NAME, WATCHED = "scheduled", "watched"
PARAMETERS = Path("parameters of the run")


@task(task_run_name="clone at {revision}", persist_result=False)
def prepare(place: Workspace, revision: str) -> str:
    """Check out the revision in the clone; return its commit."""
    return workspace.prepare(place, revision, get_run_logger().info)


@task(name="pull artifacts", persist_result=False)
def pull(place: Workspace, *, model_alone: bool = False) -> None:
    workspace.pull(place, get_run_logger().info, model_alone=model_alone)


@task(task_run_name="retrain {pipeline}", persist_result=False)
def retrain(pipeline: str, place: Workspace) -> State[None]:
    """Retrain in the clone. The final state is Completed, with the state name of the child run there."""
    with parent(), _stopped_with_child():
        workspace.retrain(place, print)
    return _as_child_ended()


@task(name="push artifacts", retries=2, retry_delay_seconds=10, persist_result=False)
def push(place: Workspace) -> None:
    workspace.push(place)


@task(name="commit results", persist_result=False)
def commit_results(place: Workspace, revision: str, message: str, *, promoted: bool) -> str | None:
    return workspace.commit_results(place, revision, message, promoted=promoted)


@task(name="send results", retries=2, retry_delay_seconds=10, persist_result=False)
def send_results(place: Workspace) -> str | None:
    """Push the results to Git; return their branch or tag."""
    return workspace.send_results(place)


@flow(name=NAME, flow_run_name="{pipeline} at {revision}")
def scheduled(
    pipeline: str,
    repository: str,
    revision: str = "main",
    results: Results = "branch",
    workspaces: str = "~/.changepair",
    remote: str | None = None,
    remote_timeout: int = 3600,
    overlap: Overlap = "wait",
    override: dict[str, Any] | None = None,
) -> State[None]:
    """Retrain a pipeline at a revision of a repository. Raise BadInput if a parameter is invalid.

    A run of a deployment has the parameters of the deployment; only `override` can be set for one run.

    Args:
        pipeline: Name of the pipeline in pipelines.yaml. Fixed by the deployment.
        repository: Repository to clone (`runs.repository`). Fixed by the deployment.
        revision: Branch, tag or commit to run (`runs.revision`). Fixed by the deployment.
        results: Where the results are committed: `branch`, `tag` or `none` (`runs.results`). Fixed by the deployment.
        workspaces: Folder of the clones and the cache on the worker (`runs.workspaces`). Fixed by the deployment.
        remote: DVC remote for artifacts; null for the default one (`runs.remote`). Fixed by the deployment.
        remote_timeout: Seconds that one pull or push may take (`runs.remote_timeout`). Fixed by the deployment.
        overlap: Reaction to another run that is still running: `wait` or `skip` (`runs.overlap`). Fixed by the deployment.
        override: Settings of the pipeline for this run alone, by their dotted keys, such as {"evaluation.resolution": 128}. The run's
            results contain them in their pipelines.yaml.
    """
    place = Workspace(Path(workspaces).expanduser(), pipeline, repository, results, remote, remote_timeout)
    return _alone(place, workspaces, revision, f"{pipeline} at {revision}", overlap, partial(_run, place, revision, override or {}))


@task(task_run_name="score new pictures of {pipeline}", persist_result=False)
def score(pipeline: str, place: Workspace) -> State[None]:
    """Score in the clone. The final state is Completed, with the state name of the child run there."""
    with parent(), _stopped_with_child():
        workspace.score(place, print)
    return _as_child_ended()


@flow(name=WATCHED, flow_run_name="{pipeline}, new pictures")
def watched(
    pipeline: str,
    repository: str,
    revision: str = "main",
    results: Results = "branch",
    workspaces: str = "~/.changepair",
    remote: str | None = None,
    remote_timeout: int = 3600,
    overlap: Overlap = "wait",
) -> State[None]:
    """Score new pictures in a pipeline's watched folder with the current model. A separate clone keeps the record.

    A run of a deployment has the parameters of the deployment.

    Args:
        pipeline: Name of the pipeline in pipelines.yaml. Fixed by the deployment.
        repository: Repository to clone (`runs.repository`). Fixed by the deployment.
        revision: Branch, tag or commit to run (`runs.revision`). Fixed by the deployment.
        results: Where the results are committed: `branch`, `tag` or `none` (`runs.results`). Fixed by the deployment.
        workspaces: Folder of the clones and the cache on the worker (`runs.workspaces`). Fixed by the deployment.
        remote: DVC remote for artifacts; null for the default one (`runs.remote`). Fixed by the deployment.
        remote_timeout: Seconds that one pull or push may take (`runs.remote_timeout`). Fixed by the deployment.
        overlap: Reaction to another run that is still running: `wait` or `skip` (`runs.overlap`). Fixed by the deployment.
    """
    place = Workspace(Path(workspaces).expanduser(), pipeline, repository, results, remote, remote_timeout, purpose=f".{WATCHED}")

    def work() -> State[None]:
        prepare(place, revision)
        pull(place, model_alone=True)
        state = score(pipeline, place, return_state=True)
        if not state.is_completed():
            state.result()
        return Completed(name=state.name, message=state.message)

    return _alone(place, workspaces, revision, f"{pipeline}, new pictures", overlap, work)


@stoppable
def _alone(place: Workspace, workspaces: str, revision: str, what: str, overlap: Overlap, work: Callable[[], State[None]]) -> State[None]:
    """Check the parameters, lock the clone, and call `work`. Cancel missed runs, and end runs whose process died."""
    logger = get_run_logger()
    log_in_lines()
    parse(Name, place.pipeline, ("pipeline",), PARAMETERS)  # it becomes the name of a folder
    about: dict[str, Any] = {"repository": place.repository, "revision": revision, "workspaces": workspaces}
    about |= {"remote": place.remote, "remote_timeout": place.remote_timeout}
    parse(Runs, about, (), PARAMETERS)
    refuse_secret(place.repository)
    context = FlowRunContext.get()
    assert context is not None and context.flow is not None
    refuse_unknown_code(context.flow, context.parameters or {})
    Console.on_broken_pipe = lambda _console: None  # type: ignore[assignment,method-assign]  # rich would end the process if the worker that reads the output dies
    try:
        place.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"runs.workspaces: cannot create {place.root} ({error.strerror}); set another folder") from error
    with one_api():
        try:
            wait = overlap == "wait"
            with one_at_a_time(place.folder.name, what, folder=place.root, where=place.folder, wait=wait, tell=logger.warning):
                for late in make_up_for_missed():
                    due = late.expected_start_time
                    logger.info(f"{place.pipeline}: the run that was due at {due} was missed; this run replaces it")
                for died in _others("RUNNING"):  # this run holds the lock, so any other one is dead
                    close_dead(died.id, f"its process died; run {flow_run.get_id()} resumes its work")
                return work()
        except Held as held:
            logger.warning(str(held))
            return Completed(name=RunState.SKIPPED, message=str(held))


@contextmanager
def _stopped_with_child() -> Iterator[None]:
    """Raise Stopped instead of a failure if only the run in the clone was cancelled."""
    try:
        yield
    except BadInput as error:
        ended = child()
        if ended is not None and ended.state is not None and ended.state.is_cancelled():
            raise Stopped(f"{ended.name}: {ended.state.message}") from error
        raise


def _as_child_ended() -> State[None]:
    """Return the final state of the task's child run."""
    ended = child()
    if ended is None or ended.state is None:
        return Completed()
    return Completed(name=ended.state.name, message=ended.state.message, state_details=link_child())


def _run(place: Workspace, revision: str, override: Mapping[str, Any]) -> State[None]:
    """Retrain in the clone, and push the results."""
    pipeline, logger = place.pipeline, get_run_logger()
    retraining = False
    try:
        commit = prepare(place, revision)
        for line in workspace.override(place, override):
            logger.info(f"{pipeline}: override for this run: {line}")
        pull(place)
        retraining = True
        state = retrain(pipeline, place, return_state=True)
        if not state.is_completed():
            state.result()
        retraining = False
        settings = f" with {', '.join(f'{key}={value}' for key, value in override.items())}" if override else ""
        message = f"{pipeline} at {commit[:8]}{settings}: {state.name}\n\n{state.message or ''}\n"
        results = commit_results(place, commit, message, promoted=state.name == RunState.PROMOTED)
        push(place)
        name = send_results(place)
    except BadInput as error:
        if not retraining:  # `retrain` itself emits the event for a failure
            emit(pipeline, OF_AN_END[RunState.FAILED], {"run": flow_run.get_id(), "time": now(), "reason": hide(str(error))})
        raise
    where = f"; results: {name}" if name else ""
    logger.info(f"{pipeline}: {state.name}{where}{'' if results else ', no changes'}")
    return Completed(name=state.name, message=f"{state.message}{where}")


def make_up_for_missed() -> list[FlowRun]:
    """Cancel the runs of this deployment that are overdue. After a downtime, one run is enough."""
    late = [run for run in _others("SCHEDULED", {"expected_start_time": {"before_": now()}}) if run.auto_scheduled]
    with get_client(sync_client=True) as client:
        for run in late:
            missed: State[None] = Cancelled(name="Missed", message=f"run {flow_run.get_id()} replaces it")
            client.set_flow_run_state(run.id, missed, force=True)
    return late


def _others(state: str, more: Mapping[str, Any] | None = None) -> list[FlowRun]:
    """List the other runs of this run's deployment in a given state type. `more` adds filters."""
    deployment_id, own = deployment.get_id(), flow_run.get_id()
    if deployment_id is None:
        return []
    asked = {"deployment_id": {"any_": [deployment_id]}, "state": {"type": {"any_": [state]}}, **(more or {})}
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(asked)) if str(run.id) != own]
