"""Stage train: change pairs or labelled pictures in, one trained detector out."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger

from changepair.flows.running.api import stoppable
from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CANDIDATE, CHECKPOINTS, EPISODES, MODELS, PAIRS
from changepair.flows.running.steps import progress, step, tracking_of
from changepair.flows.settings.pipelines import Execution, Pipeline, detector_of, pipeline_named, read_pipelines
from changepair.tasks.detectors import train as detector_training
from changepair.tasks.detectors.pretrained import use_model
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.training import processes
from changepair.tasks.training.loop import Examples, Places, Trained
from changepair.tasks.training.processes import Job

use_given_model = step(name="use model", task_run_name="use model {name}")(use_model)


@step(name="train detector", task_run_name="train {name}", retry_delay_seconds=30)
def train_detector(name: str, pipeline: str, settings: Pipeline, model_folder: Path, execution: Execution) -> Trained:
    """Trains a detector; a retry goes on from the last checkpoint."""
    job = Job(
        detector_training.__name__,
        settings.detectors[name],
        settings.training_of(name),
        Examples(PAIRS / pipeline, settings.synthesis, EpisodeFiles.of(EPISODES, pipeline)),
        Places(model_folder, CHECKPOINTS / pipeline / name, tracking_of(execution, pipeline, name)),
        execution.workers,
    )
    report = progress(f"{name}: share of the training steps done")
    return processes.train(job, execution.processes, report)


@flow(name="train", flow_run_name="train {pipeline} {detector}")
@stoppable
def train(pipeline: str, detector: str) -> None:
    settings = pipeline_named(pipeline)
    chosen = detector_of(settings, pipeline, detector)
    folder = MODELS / pipeline / CANDIDATE / detector
    if chosen.model is not None:
        use_given_model(detector, chosen, folder)
        get_run_logger().info(f"{pipeline}: {detector} as {chosen.model} has it")
        return
    trained: Trained = train_detector(detector, pipeline, settings, folder, read_pipelines().execution)
    measured = "" if trained.held_out_loss is None else f", on held-out examples {trained.held_out_loss:.4f}"
    if trained.parts > 1:
        get_run_logger().warning(
            f"{pipeline}: {detector}: a batch does not fit into memory, and was taken in {trained.parts} parts; with a lower batch_size it "
            "is the same model on every machine"
        )
    get_run_logger().info(f"{pipeline}: {detector}, {trained.steps} steps, loss {trained.loss:.4f}{measured}")


if __name__ == "__main__":
    start_stage(train, on_gpu=True)
