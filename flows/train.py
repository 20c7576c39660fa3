"""Run the stage `train`: read change pairs or labelled pictures; write the model folder of one detector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import CANDIDATE, EPISODES, MODELS, PAIRS
from changepair.flows.settings.pipelines import Datasets, Execution, Pipeline
from changepair.flows.stage import Input, OfDetectors, Output, Setting, Stage, code_file, loss_plot, stage_flow
from changepair.tasks.detectors.registry import kind_of
from changepair.tasks.encoders.settings import PACKAGED
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.synthesis.settings import AugmentationSettings
from changepair.tasks.training.log import LOG_NAME
from changepair.tasks.training.settings import TrainingSettings

if TYPE_CHECKING:
    from changepair.tasks.training.loop import Trained


@dataclass(frozen=True)
class Train(Stage):
    """Declare the training of one detector, or the use of a pretrained model."""

    pipeline: str
    detector: str
    examples: Input[Path | None]
    """Folder of change pairs, or table of labelled pictures; None if the detector is not trained."""
    weights: Input[Sequence[str]]
    """Local files and folders of the encoder, and of the model to use or to start from."""
    chosen: OfDetectors[Mapping[str, Any]]
    """Settings of the detector, by its name."""
    training: Annotated[TrainingSettings | None, Setting("pipelines.{pipeline}.training.{detector}")]
    augmentation: Annotated[AugmentationSettings | None, Setting("pipelines.{pipeline}.synthesis.augmentation")]
    """Augmentation of the appearance of pairs; None for labelled pictures."""
    folder: Output[Path]

    @property
    def about(self) -> str:
        return f"Train {self.detector}" if self.training else f"Use the pretrained model of {self.detector}"

    @property
    def code(self) -> Path:
        return code_file("train", kind_of(self.chosen[self.detector]))

    @property
    def plots(self) -> tuple[Mapping[str, Any], ...]:
        return (loss_plot(self.folder / LOG_NAME, self.detector),) if self.training else ()


def declare(name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Train]:
    """Declare a stage for each detector with weights."""
    for detector in pipeline.trained:
        settings, learns_from = pipeline.detectors[detector], pipeline.trained_on.get(detector)
        training = pipeline.training_of(detector) if learns_from else None
        pairs = learns_from == "pairs"
        models = [settings.model, training.init if training else None]
        yield Train(
            name,
            detector,
            examples=(PAIRS / name if pairs else EpisodeFiles.of(EPISODES, name).auxiliary) if learns_from else None,
            weights=[*(model for model in models if model not in (None, PACKAGED)), *settings.encoder.files],
            chosen={detector: settings},
            training=training,
            augmentation=pipeline.synthesis.augmentation if pairs else None,
            folder=MODELS / name / CANDIDATE / detector,
        )


@stage_flow(on_gpu=True)
def train(stage: Train, execution: Execution) -> None:
    from prefect import get_run_logger

    from changepair.flows.running.steps import step
    from changepair.tasks.detectors.pretrained import use_model

    pipeline, detector, settings = stage.pipeline, stage.detector, stage.chosen[stage.detector]
    if stage.training is None:
        step(name="use model", task_run_name="use model {name}")(use_model)(detector, settings, stage.folder)
        get_run_logger().info(f"{pipeline}: {detector} uses the model {settings.model}")
        return
    task = step(name="train detector", task_run_name=f"train {detector}", retry_delay_seconds=30)(train_detector)
    trained: Trained = task(stage, execution)
    measured = "" if trained.held_out_loss is None else f", {trained.held_out_loss:.4f} on held-out examples"
    if trained.parts > 1:
        get_run_logger().warning(
            f"{pipeline}: {detector}: a batch does not fit into memory and is split into {trained.parts} parts; lower batch_size to train "
            "the same model on every machine"
        )
    get_run_logger().info(f"{pipeline}: {detector}: {trained.steps} steps, loss {trained.loss:.4f}{measured}")


def train_detector(stage: Train, execution: Execution) -> Trained:
    """Train a detector. A retry resumes from the last checkpoint."""
    from changepair.flows.running.steps import progress, tracking_of
    from changepair.tasks.detectors import train as training
    from changepair.tasks.training import processes
    from changepair.tasks.training.loop import Examples, TrainingFolders

    assert stage.examples is not None
    name = stage.detector
    room = round(execution.cached_features * 2**30) // processes.count_of(execution.processes)
    job = processes.Job(
        training.__name__,
        stage.chosen[name],
        stage.training,
        Examples(stage.examples, stage.augmentation or AugmentationSettings()),
        TrainingFolders(stage.folder, stage.checkpoints, tracking_of(execution, stage.pipeline, name), room),
        execution.workers,
    )
    return processes.train(job, execution.processes, progress(f"{name}: training progress"))


if __name__ == "__main__":
    start_stage("train")
