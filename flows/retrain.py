"""The flow retrain: walks a pipeline's stages in dvc.yaml's order, running those that are out of date."""

from __future__ import annotations

from prefect import flow, get_run_logger, task
from prefect.states import Completed, State

from flows.pipelines import enabled_pipeline
from flows.stages import reproduce, stages_of


@task(task_run_name="{stage}", persist_result=False)
def run_stage(stage: str) -> State[bool]:
    """Completed as `Ran` or as `Up to date`."""
    ran = reproduce(stage)
    return Completed(name="Ran" if ran else "Up to date", data=ran)


@flow(name="retrain", flow_run_name="retrain {pipeline}")
def retrain(pipeline: str) -> State[None]:
    settings = enabled_pipeline(pipeline)
    ran = [stage for stage in stages_of(pipeline, {*settings.sources, *settings.targets}) if run_stage(stage)]
    message = f"ran {', '.join(ran)}" if ran else "every stage is up to date"
    get_run_logger().info(f"{pipeline}: {message}")
    return Completed(message=message)
