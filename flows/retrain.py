"""The flow retrain: walks a pipeline's stages in dvc.yaml's order, running those that are out of date, and ends at the promotion gate."""

from __future__ import annotations

from logging import INFO, WARNING

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.artifacts import key
from flows.pipelines import enabled_pipeline
from flows.promotion import Outcome, gate
from flows.stages import reproduce, stages_of

RAN, UP_TO_DATE = "Ran", "Up to date"


@task(task_run_name="{stage}", persist_result=False)
def run_stage(stage: str) -> State[None]:
    """Completed as RAN or as UP_TO_DATE."""
    return Completed(name=RAN if reproduce(stage) else UP_TO_DATE)


@task(name="promotion gate", task_run_name="promotion gate {pipeline}", persist_result=False)
def promotion_gate(pipeline: str) -> State[None]:
    """Completed as «Promoted», «Kept» or «In use already», with the reason."""
    outcome = gate(pipeline)
    create_markdown_artifact(_told(pipeline, outcome), key=key(pipeline, "promotion"), description=f"{outcome.state}: {outcome.reason}")
    return Completed(name=outcome.state, message=outcome.reason)


@flow(name="retrain", flow_run_name="retrain {pipeline}")
def retrain(pipeline: str) -> State[None]:
    settings = enabled_pipeline(pipeline)
    stages = stages_of(pipeline, {name for names in settings.datasets.values() for name in names})
    ran = []
    for stage in stages:
        state = run_stage(stage, return_state=True)
        if not state.is_completed():
            state.result()  # raises what the stage raised: nothing after it runs
        if state.name == RAN:
            ran.append(stage)
    message = f"ran {', '.join(ran)}" if ran else "every stage is up to date"
    get_run_logger().info(f"{pipeline}: {message}")
    gated = promotion_gate(pipeline, return_state=True)
    if not gated.is_completed():
        gated.result()
    outcome = f"{gated.name}: {gated.message}"
    get_run_logger().log(WARNING if gated.name == "Kept" else INFO, f"{pipeline}: {outcome}")
    return Completed(name=gated.name, message=f"{outcome}; {message}")


def _told(pipeline: str, outcome: Outcome) -> str:
    lines = [f"# {pipeline}: {outcome.state}", "", outcome.reason]
    if outcome.decision.compared:
        lines += ["", "| detector | new | in use | difference | 95 % interval | passes |", "|---|---|---|---|---|---|"]
    for item in outcome.decision.compared:
        numbers = (item.new, item.in_use, item.difference, item.low, item.high)
        new, in_use, difference, low, high = (f"{100 * number:.1f}" for number in numbers)
        lines.append(f"| {item.detector} | {new} | {in_use} | {difference} | {low} to {high} | {'yes' if item.passes else 'no'} |")
    return "\n".join(lines) + "\n"
