"""Run the stage `inpainter`: train the model that repaints regions of the sources, or write the name of a published one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from changepair.flows.running.entry import start_stage
from changepair.flows.running.places import EPISODES, INPAINTERS
from changepair.flows.settings.pipelines import Datasets, Execution, Pipeline
from changepair.flows.stage import Input, OfPipeline, Output, Stage, loss_plot, stage_flow
from changepair.tasks.inpainting.settings import NAMED, OWN, PACKAGED, InpainterSettings
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.training.log import LOG_NAME

if TYPE_CHECKING:
    from changepair.tasks.training.loop import Trained


@dataclass(frozen=True)
class Inpaint(Stage):
    """Train the inpainting model on the sources, or record which published model is used."""

    pipeline: str
    sources: Input[Path | None]
    """Table of pictures to train on; None if no model is trained."""
    weights: Input[str | None]
    """A local model folder; None for other models."""
    inpainter: OfPipeline[InpainterSettings]
    folder: Output[Path]

    @property
    def plots(self) -> Sequence[Mapping[str, Any]]:
        return (loss_plot(self.folder / LOG_NAME, "the inpainting model"),) if self.sources is not None else ()


def declare(name: str, pipeline: Pipeline, datasets: Datasets) -> Iterator[Inpaint]:
    model = pipeline.inpainter.model
    sources = EpisodeFiles.of(EPISODES, name).sources if model == OWN else None
    weights = model if model not in NAMED and Path(model).is_dir() else None
    yield Inpaint(name, sources, weights, pipeline.inpainter, INPAINTERS / name)


@stage_flow(on_gpu=True)
def inpainter(stage: Inpaint, execution: Execution) -> None:
    from prefect import get_run_logger

    from changepair.flows.running.steps import step
    from changepair.tasks.inpainting.inpainter import write_choice
    from changepair.tasks.packaged.inpainting import write_packaged

    if stage.sources is not None:
        trained: Trained = step(name="train inpainter", retry_delay_seconds=30)(train_inpainter)(stage)
        get_run_logger().info(f"{stage.pipeline}: inpainter: {trained.steps} steps, loss {trained.loss:.4f}")
    elif stage.inpainter.model == PACKAGED:
        write_packaged(stage.folder)
    write_choice(stage.folder, stage.inpainter)


def train_inpainter(stage: Inpaint) -> Trained:
    """Train the inpainting model. A retry resumes from the last checkpoint."""
    from changepair.flows.running.steps import progress
    from changepair.tasks.training import inpainting
    from changepair.tasks.training.loop import TrainingFolders

    assert stage.sources is not None
    places = TrainingFolders(stage.folder, stage.checkpoints / "inpainter")
    report = progress("inpainter: training progress")
    return inpainting.train_inpainter(stage.inpainter, stage.sources, places=places, report=report)


if __name__ == "__main__":
    start_stage("inpainter")
