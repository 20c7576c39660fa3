"""The flow retrain: walks a pipeline's stages in dvc.yaml's order, running those that are out of date, and ends at the promotion gate."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from logging import INFO, WARNING
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.plan import SPLIT, write_plan
from flows.promotion.gate import Outcome, gate
from flows.promotion.history import read_current
from flows.running import provenance
from flows.running.api import child, close_dead, link_child, parent
from flows.running.artifacts import key
from flows.running.dvc import forward_sigterm, reproduce, stages_before
from flows.running.locks import Held, one_at_a_time
from flows.running.places import EVALUATION
from flows.running.secrets import hide
from flows.runs.journal import RUNNING, Journal, read_runs
from flows.runs.notices import notify
from flows.settings.pipelines import Pipelines, enabled_pipeline, read_pipelines
from tasks.common.errors import BadInput
from tasks.common.stopping import Stopped, check, on_sigterm
from tasks.scoring.results import METRICS_NAME

RAN, UP_TO_DATE, SKIPPED = "Ran", "Up to date", "Skipped"
LOCK = "retrain"  # of the checkout: two pipelines share its dvc.lock and datasets


@task(task_run_name="{stage}", persist_result=False)
def bring_up_to_date(stage: str) -> State[None]:
    """Completed as RAN or as UP_TO_DATE."""
    since = time.monotonic()
    with parent():
        try:
            ran = reproduce(stage)
        except BadInput as error:
            raise BadInput(_with_reason(str(error))) from error
    if not ran:
        return Completed(name=UP_TO_DATE, message=stage)
    return Completed(name=RAN, message=f"{stage}, {time.monotonic() - since:.0f} s", state_details=link_child())


@task(name="promotion gate", task_run_name="promotion gate {pipeline}", persist_result=False)
def promotion_gate(pipeline: str) -> State[None]:
    """Completed as «Promoted», «Kept» or «In use already», with the reason."""
    outcome = gate(pipeline)
    create_markdown_artifact(_told(pipeline, outcome), key=key(pipeline, "promotion"), description=f"{outcome.state}: {outcome.reason}")
    return Completed(name=outcome.state, message=outcome.reason)


@flow(name="retrain", flow_run_name="retrain {pipeline}")
def retrain(pipeline: str) -> State[None]:
    settings = read_pipelines()
    enabled_pipeline(pipeline)
    wait = settings.runs_of(pipeline).overlap == "wait"
    with on_sigterm(also=forward_sigterm):
        try:
            with one_at_a_time(LOCK, f"retrain {pipeline}", wait=wait, told=get_run_logger().warning):
                return _recorded(pipeline, settings)
        except Held as held:
            get_run_logger().warning(str(held))
            return Completed(name=SKIPPED, message=str(held))


def _recorded(pipeline: str, settings: Pipelines) -> State[None]:
    """The run itself, written down while it happens; whoever is to be told of its end is told."""
    own = str(flow_run.get_id())
    for died in (run for run in read_runs(pipeline) if run.state == RUNNING and run.id):  # we hold the lock that it would hold
        close_dead(UUID(died.id), f"its process is gone; run {own} goes on from there")
    journal = Journal(pipeline, provenance.commit(), own)
    try:
        state = _retrain(pipeline, settings, journal)
        name, message = str(state.name), str(state.message).removeprefix(f"{state.name}: ")
    except BaseException as error:
        name, message = ("Stopped" if isinstance(error, Stopped) else "Failed"), str(error) or type(error).__name__
        raise
    finally:
        journal.close(name, hide(message), _figures(pipeline), _in_use(pipeline))
        about = {"run": own, "commit": journal.run.commit, "time": journal.run.ended, "figures": journal.run.figures}
        notify(settings.notices, pipeline, name, message, about, get_run_logger())
    return state


def _retrain(pipeline: str, settings: Pipelines, journal: Journal) -> State[None]:
    logger = get_run_logger()
    ran = []
    if write_plan():
        logger.info(f"{pipeline}: dvc.yaml is written anew, as pipelines.yaml asks for other stages than it had")
    for stage in stages_before(f"report{SPLIT}{pipeline}"):
        check(f"retrain {pipeline}, before {stage}")
        journal.begin(stage)
        state = bring_up_to_date(stage, return_state=True)
        journal.end(stage, str(state.name))
        if not state.is_completed():
            state.result()  # raises what the stage raised: nothing after it runs
        ran += [stage] if state.name == RAN else []
    check(f"retrain {pipeline}, before the promotion gate")
    message = f"ran {', '.join(ran)}" if ran else "every stage is up to date"
    logger.info(f"{pipeline}: {message}")
    gated = promotion_gate(pipeline, return_state=True)
    if not gated.is_completed():
        gated.result()
    outcome = f"{gated.name}: {gated.message}"
    logger.log(WARNING if gated.name == "Kept" else INFO, f"{pipeline}: {outcome}")
    return Completed(name=gated.name, message=f"{outcome}; {message}")


def _with_reason(failure: str) -> str:
    """The failure of a stage, with what its own run said."""
    made = child()
    said = made.state.message if made is not None and made.state is not None and made.state.message else ""
    return f"{failure} ({said.removeprefix('Flow run encountered an exception: ').removeprefix('BadInput: ')})" if said else failure


def _in_use(pipeline: str) -> str:
    try:
        current = read_current(pipeline)
    except BadInput:
        return ""
    return current.candidate if current else ""


def _figures(pipeline: str) -> Mapping[str, Any]:
    file = EVALUATION / pipeline / METRICS_NAME
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _told(pipeline: str, outcome: Outcome) -> str:
    lines = [f"# {pipeline}: {outcome.state}", "", outcome.reason]
    if outcome.decision.compared:
        lines += ["", "| detector | new | in use | difference | 95 % interval | passes |", "|---|---|---|---|---|---|"]
    for item in outcome.decision.compared:
        numbers = (item.new, item.in_use, item.difference, item.low, item.high)
        new, in_use, difference, low, high = (f"{100 * number:.1f}" for number in numbers)
        lines.append(f"| {item.detector} | {new} | {in_use} | {difference} | {low} to {high} | {'yes' if item.passes else 'no'} |")
    return "\n".join(lines) + "\n"
