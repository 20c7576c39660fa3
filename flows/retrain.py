"""The flow retrain: walks a pipeline's stages in dvc.yaml's order, running those that are out of date."""

from __future__ import annotations

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.pipelines import enabled_pipeline
from flows.stages import reproduce, stages_of

RAN, UP_TO_DATE = "Ran", "Up to date"


@task(task_run_name="{stage}", persist_result=False)
def run_stage(stage: str) -> State[None]:
    """Completed as RAN or as UP_TO_DATE."""
    return Completed(name=RAN if reproduce(stage) else UP_TO_DATE)


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
    return Completed(message=message)
