"""Define the flow `retrain`: run the out-of-date stages of a pipeline in order, then ask the promotion gate."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from changepair.flows.plan import write_plan
from changepair.flows.promotion.gate import Outcome, gate
from changepair.flows.promotion.history import folder_of, read_current, read_recommendation
from changepair.flows.running import provenance
from changepair.flows.running.api import close_dead, link_child, page_of_run, parent, stopped
from changepair.flows.running.console import SAID
from changepair.flows.running.dvc import forward_sigterm, reproduce, stages_before
from changepair.flows.running.locks import Held, one_at_a_time
from changepair.flows.running.orders import follow_orders, following_orders
from changepair.flows.running.places import EVALUATION, IN_USE, REPORT_NAME
from changepair.flows.running.progress import listening, told
from changepair.flows.running.secrets import hide
from changepair.flows.running.steps import show_page
from changepair.flows.runs.journal import Journal, read_runs
from changepair.flows.runs.states import OF_AN_END, RunState, StageState, emit
from changepair.flows.runs.status import ProgressDisplay
from changepair.flows.runs.summary import RUNS, summary
from changepair.flows.settings.pipelines import enabled_pipeline, read_pipelines
from changepair.flows.stage import SPLIT
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.stopping import Stopped, asked, check, on_sigterm
from changepair.tasks.reporting.readiness import verdict_of
from changepair.tasks.scoring.results import METRICS_NAME

LOCK = "retrain"  # one for each checkout, because pipelines share dvc.lock and datasets


@dataclass(frozen=True)
class Ended:
    """The result of a run."""

    outcome: Outcome
    ran: tuple[str, ...]
    """Names of the stages that ran."""

    @property
    def message(self) -> str:
        work = f"ran {', '.join(self.ran)}" if self.ran else "every stage is up to date"
        return f"{self.outcome.reason}; {work}"


@task(task_run_name="{stage}", persist_result=False)
def bring_up_to_date(stage: str) -> State[bool]:
    """Run a stage if it is out of date. The state is Completed, named RAN or UP_TO_DATE, and holds whether the stage ran."""
    since = time.monotonic()
    with parent():
        try:
            ran = reproduce(stage)
        except Stopped as error:
            where = told().stop
            raise Stopped(f"{error}: {where}" if where else str(error)) from error
        except BadInput as error:
            if told().stop:  # only this task was cancelled
                raise Stopped(f"retrain, in stage {stage}: {told().stop}") from error
            reason = told().failure
            raise BadInput(f"stage {stage}: {reason}" if reason else str(error)) from error
    if not ran:
        return Completed(name=StageState.UP_TO_DATE, message=stage, data=False)
    took = f"{stage}, {time.monotonic() - since:.0f} s"
    return Completed(name=StageState.RAN, message=took, data=True, state_details=link_child())


@task(name="promotion gate", task_run_name="promotion gate {pipeline}", persist_result=False)
def promotion_gate(pipeline: str) -> State[Outcome]:
    """Ask the promotion gate. The state is Completed, has the name of the outcome, and holds the outcome."""
    outcome = gate(pipeline)
    about = f"{outcome.state}: {outcome.reason}"
    page = summary(
        pipeline,
        about,
        _compared(outcome),
        list(enabled_pipeline(pipeline).trained_on),
        read_runs(pipeline, last=RUNS)[1:],
        _metrics(pipeline),
    )
    show_page(pipeline, "summary", page, about)
    return Completed(name=outcome.state, message=outcome.reason, data=outcome)


@flow(name="retrain", flow_run_name="retrain {pipeline}")
def retrain(pipeline: str) -> State[None]:
    enabled_pipeline(pipeline)
    wait = read_pipelines().runs_of(pipeline).overlap == "wait"
    with on_sigterm(also=forward_sigterm), following_orders():
        try:
            with one_at_a_time(LOCK, f"retrain {pipeline}", wait=wait, tell=get_run_logger().warning):
                ended = _recorded(pipeline)
        except Held as held:
            get_run_logger().warning(str(held))
            return Completed(name=RunState.SKIPPED, message=str(held))
        except Exception as error:
            state = stopped(error)
            if state is None:
                raise
            return state
    return Completed(name=ended.outcome.state, message=ended.message)


def _recorded(pipeline: str) -> Ended:
    """Run the stages, and record the run in the journal and as an event on the server."""
    own = str(flow_run.get_id())
    for died in (
        run for run in read_runs(pipeline) if run.state == RunState.RUNNING and run.id
    ):  # a live run would hold the lock that we hold
        close_dead(UUID(died.id), f"its process has died; run {own} resumes from there")
    journal = Journal(pipeline, provenance.commit(), own)
    state, message = RunState.FAILED, ""
    try:
        ended = _retrain(pipeline, journal)
        state, message = ended.outcome.state, ended.message
    except BaseException as error:
        state = RunState.STOPPED if isinstance(error, Stopped) or asked() else RunState.FAILED
        message = str(error) or type(error).__name__
        raise
    finally:
        journal.close(state, hide(message), _metrics(pipeline), _model_in_use(pipeline).get("model", ""))
        about = {"run": own, "commit": journal.run.commit, "time": journal.run.ended, "metrics": journal.run.metrics}
        if state in OF_AN_END:
            emit(pipeline, OF_AN_END[state], {**about, "reason": hide(message), "in use": _model_in_use(pipeline)})
    return ended


def _retrain(pipeline: str, journal: Journal) -> Ended:
    logger = get_run_logger()
    ran = []
    rewritten = write_plan()
    stages = stages_before(f"report{SPLIT}{pipeline}")
    milestones = ProgressDisplay(stages)
    if rewritten:
        line = f"{pipeline}: dvc.yaml is updated, because the stages of pipelines.yaml changed"
        logger.info(line)
        milestones.say(line)
    page = page_of_run()
    if page is not None:
        milestones.say(f"{pipeline}: {page}")
    for stage in stages:
        check(f"retrain {pipeline}, before {stage}")
        journal.begin(stage)
        with listening():
            state = bring_up_to_date(stage, return_state=True)
        ended_as = StageState(str(state.name)) if state.is_completed() else StageState.FAILED
        journal.end(stage, ended_as)
        ran += [stage] if state.result() else []  # raises the error of a failed stage, so no later stage runs
        milestones.ended(stage, ended_as, journal.run.stages[-1].seconds)
    follow_orders()
    outcome = cast(Outcome, promotion_gate(pipeline, return_state=True).result())
    ended = Ended(outcome, tuple(ran))
    level = WARNING if ended.outcome.state == RunState.KEPT else INFO
    logger.log(level, f"{pipeline}: {ended.outcome.state}: {ended.message}", extra={SAID: True})
    for line in _end(pipeline, ended, len(stages)):
        milestones.say(line)
    return ended


def _end(pipeline: str, ended: Ended, stages: int) -> Iterator[str]:
    """Yield the last lines for the console."""
    ran = len(ended.ran)
    yield f"{pipeline}: {ran} of {stages} stages ran, {stages - ran} are up to date"
    yield f"{pipeline}: {ended.outcome.state}: {ended.outcome.reason}"
    current = read_current(pipeline)
    if current is not None and ended.outcome.state != RunState.IN_USE:
        yield f"current model: {current.candidate[:8]}, since {current.time[:16].replace('T', ' ')} UTC"
    recommended = read_recommendation(folder_of(pipeline) / IN_USE if current is not None else EVALUATION / pipeline)
    if recommended is not None:
        yield from (f"recommended for {line}" for line in recommended.lines)
        yield from (f"{target}: {verdict_of(recommended.of(target)).headline}" for target in recommended.targets)
    yield f"report: {EVALUATION / pipeline / REPORT_NAME}"


def _model_in_use(pipeline: str) -> dict[str, str]:
    """Return path, hash, name and commit of the current model; {} without a readable one."""
    try:
        current = read_current(pipeline)
    except BadInput:
        return {}
    if current is None:
        return {}
    return {"path": (folder_of(pipeline) / IN_USE).as_posix(), "hash": current.hash, "model": current.candidate, "commit": current.commit}


def _metrics(pipeline: str) -> Mapping[str, Any]:
    file = EVALUATION / pipeline / METRICS_NAME
    try:
        metrics: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return metrics


def _compared(outcome: Outcome) -> str:
    """Return the comparison of the gate as Markdown; "" if nothing was compared."""
    lines: list[str] = []
    if outcome.decision.compared:
        lines += [
            "Comparison with the current model, in percent:",
            "",
            "| detector | new | current | difference | 95 % interval | passes |",
            "|---|---|---|---|---|---|",
        ]
    for item in outcome.decision.compared:
        numbers = (item.new, item.in_use, item.difference, item.low, item.high)
        new, in_use, difference, low, high = (f"{100 * number:.1f}" for number in numbers)
        lines.append(f"| {item.detector} | {new} | {in_use} | {difference} | {low} to {high} | {'yes' if item.passes else 'no'} |")
    return "\n".join(lines) + "\n"
