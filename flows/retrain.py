"""The flow retrain: walks a pipeline's stages in dvc.yaml's order, running those that are out of date, and ends at the promotion gate."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.code import code
from flows.plan import CODE_STAGE, SPLIT, write_plan
from flows.promotion.gate import Outcome, gate
from flows.promotion.history import read_current
from flows.running import provenance
from flows.running.api import child, close_dead, link_child, parent
from flows.running.artifacts import show_page
from flows.running.dvc import forward_sigterm, reproduce, stages_before
from flows.running.locks import Held, one_at_a_time
from flows.running.places import EVALUATION
from flows.running.secrets import hide
from flows.runs.journal import Journal, read_runs
from flows.runs.notices import notify
from flows.runs.states import RunState, StageState
from flows.settings.pipelines import Pipelines, enabled_pipeline, read_pipelines
from tasks.common.errors import BadInput
from tasks.common.stopping import Stopped, check, on_sigterm
from tasks.scoring.results import METRICS_NAME

LOCK = "retrain"  # of the checkout: two pipelines share its dvc.lock and datasets


@dataclass(frozen=True)
class Ended:
    """The end of a run."""

    outcome: Outcome
    ran: tuple[str, ...]
    """The stages that were out of date."""

    @property
    def message(self) -> str:
        work = f"ran {', '.join(self.ran)}" if self.ran else "every stage is up to date"
        return f"{self.outcome.reason}; {work}"


@task(task_run_name="{stage}", persist_result=False)
def bring_up_to_date(stage: str) -> State[bool]:
    """Runs a stage if it is out of date. Ends Completed, by the name RAN or UP_TO_DATE, and holds whether it ran."""
    since = time.monotonic()
    with parent():
        try:
            ran = reproduce(stage)
        except BadInput as error:
            if stage == CODE_STAGE:
                code()  # it runs under no flow that could say why it failed; asked again here, it raises what is wrong
            raise BadInput(_with_reason(str(error))) from error
    if not ran:
        return Completed(name=StageState.UP_TO_DATE, message=stage, data=False)
    took = f"{stage}, {time.monotonic() - since:.0f} s"
    return Completed(name=StageState.RAN, message=took, data=True, state_details=link_child())


@task(name="promotion gate", task_run_name="promotion gate {pipeline}", persist_result=False)
def promotion_gate(pipeline: str) -> State[Outcome]:
    """Asks the gate. Ends Completed by the outcome's name, and holds it."""
    outcome = gate(pipeline)
    show_page(pipeline, "promotion", _as_markdown(pipeline, outcome), f"{outcome.state}: {outcome.reason}")
    return Completed(name=outcome.state, message=outcome.reason, data=outcome)


@flow(name="retrain", flow_run_name="retrain {pipeline}")
def retrain(pipeline: str) -> State[None]:
    settings = read_pipelines()
    enabled_pipeline(pipeline)
    wait = settings.runs_of(pipeline).overlap == "wait"
    with on_sigterm(also=forward_sigterm):
        try:
            with one_at_a_time(LOCK, f"retrain {pipeline}", wait=wait, tell=get_run_logger().warning):
                ended = _recorded(pipeline, settings)
        except Held as held:
            get_run_logger().warning(str(held))
            return Completed(name=RunState.SKIPPED, message=str(held))
    return Completed(name=ended.outcome.state, message=ended.message)


def _recorded(pipeline: str, settings: Pipelines) -> Ended:
    """Runs and writes down what happens; tells whom the settings name of the end."""
    own = str(flow_run.get_id())
    for died in (run for run in read_runs(pipeline) if run.state == RunState.RUNNING and run.id):  # we hold the lock that it would hold
        close_dead(UUID(died.id), f"its process is gone; run {own} goes on from there")
    journal = Journal(pipeline, provenance.commit(), own)
    state, message = RunState.FAILED, ""
    try:
        ended = _retrain(pipeline, journal)
        state, message = ended.outcome.state, ended.message
    except BaseException as error:
        state, message = (RunState.STOPPED if isinstance(error, Stopped) else RunState.FAILED), str(error) or type(error).__name__
        raise
    finally:
        journal.close(state, hide(message), _figures(pipeline), _in_use(pipeline))
        about = {"run": own, "commit": journal.run.commit, "time": journal.run.ended, "figures": journal.run.figures}
        notify(settings.notices, pipeline, state, message, about, get_run_logger())
    return ended


def _retrain(pipeline: str, journal: Journal) -> Ended:
    logger = get_run_logger()
    ran = []
    if write_plan():
        logger.info(f"{pipeline}: dvc.yaml is written anew, as pipelines.yaml asks for other stages than it had")
    for stage in stages_before(f"report{SPLIT}{pipeline}"):
        check(f"retrain {pipeline}, before {stage}")
        journal.begin(stage)
        state = bring_up_to_date(stage, return_state=True)
        journal.end(stage, StageState(str(state.name)) if state.is_completed() else StageState.FAILED)
        ran += [stage] if state.result() else []  # or raises what the stage raised: nothing after it runs
    check(f"retrain {pipeline}, before the promotion gate")
    outcome = cast(Outcome, promotion_gate(pipeline, return_state=True).result())
    ended = Ended(outcome, tuple(ran))
    logger.log(WARNING if ended.outcome.state == RunState.KEPT else INFO, f"{pipeline}: {ended.outcome.state}: {ended.message}")
    return ended


def _with_reason(failure: str) -> str:
    """Adds to a stage's failure what its own run said: of an exception in another process Prefect keeps the message alone."""
    child_run = child()
    message = child_run.state.message if child_run is not None and child_run.state is not None and child_run.state.message else ""
    return f"{failure} ({message.removeprefix('Flow run encountered an exception: ').removeprefix('BadInput: ')})" if message else failure


def _in_use(pipeline: str) -> str:
    try:
        current = read_current(pipeline)
    except BadInput:
        return ""
    return current.candidate if current else ""


def _figures(pipeline: str) -> Mapping[str, Any]:
    file = EVALUATION / pipeline / METRICS_NAME
    try:
        figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return figures


def _as_markdown(pipeline: str, outcome: Outcome) -> str:
    lines = [f"# {pipeline}: {outcome.state}", "", outcome.reason]
    if outcome.decision.compared:
        lines += ["", "| detector | new | in use | difference | 95 % interval | passes |", "|---|---|---|---|---|---|"]
    for item in outcome.decision.compared:
        numbers = (item.new, item.in_use, item.difference, item.low, item.high)
        new, in_use, difference, low, high = (f"{100 * number:.1f}" for number in numbers)
        lines.append(f"| {item.detector} | {new} | {in_use} | {difference} | {low} to {high} | {'yes' if item.passes else 'no'} |")
    return "\n".join(lines) + "\n"
